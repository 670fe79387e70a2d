"""The parts of a decode step, each alone; and the memory of a process that decodes."""

import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from dcp_ref.checkpoints import weights
from dcp_ref.checkpoints.weights import Model
from dcp_ref.config import Config
from dcp_ref.native import kernels as native_kernels
from dcp_ref.native.cache import NativeCache
from dcp_ref.native.saving import export, restore
from dcp_ref.runtime.precision import MATRICES, Packed

KV_BYTES = {"float32": 4.0, "float16": 2.0, "int8": 1.0}  # bytes a number, without the scales of int8
CHILD = """import sys
from dcp_ref import Engine, load
engine = Engine(load(sys.argv[1]), threads=int(sys.argv[3]) or None)
sequence = engine.new_sequence()
engine.feed([sequence], [[0] * int(sys.argv[2])])
for token in range(8):
    engine.feed([sequence], [[token]])
print(*[line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")])"""


class Attention:
    """Attention alone: steps of a NativeCache that drops nothing and begins with `live` tokens a sequence."""

    def __init__(
        self, config: Config, batch: int, live: int, steps: int, kv: str = "float32", threads: int = 0
    ) -> None:
        self.config, self.kv, rng = replace(config, int_n_embd=None), kv, np.random.default_rng(0)
        self.cache = NativeCache(self.config, kv=kv, threads=threads)
        self.sequences, self.seen = [self.cache.new_sequence()], live
        batch_of_one = self.cache.reserve(self.sequences, [live])
        for layer in range(config.n_layer):
            q, k, v = self._qkv(rng, live)
            self.cache.step(layer, batch_of_one, q, k, v)
        tokens = export(self.cache, self.sequences[0])
        self.sequences += [restore(self.cache, tokens) for _ in range(batch - 1)]  # forks would share memory
        self.qkv = self._qkv(rng, batch)
        self.cache.reserve(self.sequences, [steps] * batch)

    def _qkv(self, rng: np.random.Generator, rows: int) -> list[np.ndarray]:
        return np.split(rng.standard_normal((rows, 3 * self.config.n_embd), np.float32), 3, axis=1)

    def step(self) -> None:
        """One token of each sequence, in every layer."""
        batch = self.cache.reserve(self.sequences, [1] * len(self.sequences))
        for layer in range(self.config.n_layer):
            q, k, v = self.qkv
            self.cache.step(layer, batch, q, k, v)
        self.seen += 1

    @property
    def bytes_read(self) -> float:
        """Keys and values that the next step reads."""
        return kv_bytes(self.config, len(self.sequences) * (self.seen + 1), self.kv)


def kv_bytes(config: Config, tokens: float, kv: str = "float32") -> float:
    """The bytes of keys and values when every layer holds this many tokens."""
    return config.n_layer * tokens * 2 * config.n_embd * KV_BYTES[kv]


def packed(model: Model, storage: str = "float32") -> Packed:
    """The model's weights as the native kernels read them, without the interaction weights."""
    return Packed(model, native_kernels, storage, learned=False)


class Linears:
    """Matrix products alone: all those of one step with `rows` rows."""

    def __init__(self, weights: Packed, rows: int, threads: int = 0, head: bool = True) -> None:
        self.rows, self.threads, rng = rows, threads, np.random.default_rng(0)
        self.matrices = [p[name] for p in weights.layers for name in MATRICES] + [weights.head] * head
        self.x = {n: rng.standard_normal((rows, n), np.float32) for n in {w.n_in for w in self.matrices}}

    def step(self) -> None:
        """Each product once."""
        for w in self.matrices:
            native_kernels.linear(self.x[w.n_in], w, threads=self.threads)

    @property
    def bytes_read(self) -> int:
        """The packed weights, each read once."""
        return sum(w.panels.nbytes for w in self.matrices)

    @property
    def flops(self) -> int:
        """A multiplication and an addition for each weight and row."""
        return 2 * self.rows * sum(w.n_in * w.n_out for w in self.matrices)


def peak_rss(model: Model, context: int = 64, threads: int = 0) -> int:
    """The peak memory, in bytes, of a process that loads the saved model, feeds a prompt and decodes 8 tokens."""
    with tempfile.TemporaryDirectory() as directory:
        weights.save(model, Path(directory) / "model")
        command = [sys.executable, "-c", CHILD, str(Path(directory) / "model"), str(context), str(threads)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout) * 1024
