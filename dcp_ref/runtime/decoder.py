"""The layers of `model.py` on packed weights, one row a token, and a cache in place of the mask."""

from typing import Any, NamedTuple

import numpy as np

from dcp_ref import files
from dcp_ref.block import block_params
from dcp_ref.runtime import native_kernels
from dcp_ref.runtime.recording import Calls, again, recording
from dcp_ref.runtime.storage import Room
from dcp_ref.weights import Model

MATRICES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


class _Step(NamedTuple):
    """A step of one token a sequence: the arrays that differ from one to the next, and its calls."""

    batch: Any  # the cache's: what its calls point to
    ids: np.ndarray
    positions: np.ndarray
    calls: Calls
    x: np.ndarray  # what the calls leave


class Decoder:
    """Walks the layers of a model with one sort of kernels (kernels.py, native_kernels.py) and a cache of that sort.

    In C, where each sequence of the step before gets one more token, the kernels' calls of that step are made again:
    only the tokens and positions differ.
    """

    def __init__(self, model: Model, kernels: Any, cache: Any, weights: str, threads: int) -> None:
        """Packs the weights tensor by tensor: mapped ones are in memory once. Raises ValueError naming one."""
        self.config, self.threads, self.kernels, self._cache = model.config, threads, kernels, cache
        self._step: _Step | None = None
        params, config, room = model.params, model.config, Room()

        def pack(name: str, w: np.ndarray, bias: np.ndarray | None = None, storage: str = weights) -> Any:
            try:
                return kernels.pack(w, bias, storage, room)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
            finally:
                files.forget(w)

        self._wte = pack("wte.weight", params["wte.weight"].T)
        self.head = self._wte if config.tie_word_embeddings else pack("lm_head.weight", params["lm_head.weight"].T)
        small = {name: np.array(x, np.float32) for name, x in params.items()
                 if x.ndim == 1 or name == "wpe.weight"}  # as they are, whatever the storage
        self._wpe, self._ln_f = small["wpe.weight"], (small["ln_f.weight"], small["ln_f.bias"])
        self.blocks: list[dict[str, Any]] = []
        for layer in range(config.n_layer):
            p = block_params(params, layer)
            block: dict[str, Any] = {**block_params(small, layer)}
            for name in MATRICES:
                block[name] = pack(f"h.{layer}.{name}.weight", p[f"{name}.weight"], block[f"{name}.bias"])
            if self._cache.policy.learned:  # float32 always: rounding must not flip a drop by itself
                w = np.concatenate([p["attn.q_int.weight"], p["attn.k_int.weight"]], axis=1)
                block["attn.int"] = pack(f"h.{layer}.attn.q_int.weight", w, storage="float32")
            self.blocks.append(block)

    def logits(self, sequences: list[int], starts: list[int], counts: list[int], ids: np.ndarray,
               wanted: np.ndarray) -> np.ndarray:
        """Feeds counts[b] of the N ids to sequences[b], at positions starts[b] and on; a fresh [wanted, V].

        The cache must have room. `wanted` are the rows, ascending, whose logits are returned.
        """
        K, config = self.kernels, self.config
        positions = np.concatenate([np.arange(start, start + n, dtype=np.int64)
                                    for start, n in zip(starts, counts, strict=True)])
        one_each = K is native_kernels and max(counts) == 1 and not config.propagate_in_depth
        with recording(False):  # another engine's step may be under way in this thread
            walk = self._one_token_each if one_each else self._blocks
            x = walk(sequences, starts, counts, ids, positions, wanted)
            x = K.layer_norm(x, *self._ln_f, config.layer_norm_epsilon, self.threads)
            return K.linear(x, self.head, threads=self.threads)

    def _one_token_each(self, sequences, starts, counts, ids, positions, wanted):
        step, self._step = self._step, None  # an interrupted one is not made again
        if step is not None and step.batch is self._cache.batch:
            step.ids[:], step.positions[:] = ids, positions
            again(step.calls)
        else:
            batch = self._cache.batch
            with recording() as calls:
                x = self._blocks(sequences, starts, counts, ids, positions, wanted)
            step = _Step(batch, ids, positions, calls, x)
        self._step = step
        return step.x

    def _blocks(self, sequences, starts, counts, ids, positions, wanted):  # N ids -> the rows wanted, [.., C]
        K, threads, config, C = self.kernels, self.threads, self.config, self.config.n_embd
        x = K.embedding(ids, positions, self._wte, self._wpe, threads)
        inherited, interaction = None, {}
        n = qkv = y = hidden = None  # memory of one layer serves the next: fresh pages are a tenth of a prompt's time
        for layer, p in enumerate(self.blocks):
            n = K.layer_norm(x, p["ln_1.weight"], p["ln_1.bias"], config.layer_norm_epsilon, threads, n)
            qkv = K.linear(n, p["attn.c_attn"], threads=threads, out=qkv)
            if self._cache.policy.learned:
                both, r = K.linear(n, p["attn.int"], threads=threads), config.int_n_embd
                interaction = {"q_int": both[:, :r], "k_int": both[:, r:], "beta": float(p["attn.int_bias"][0])}
            y, dropped = self._cache.step(
                layer, sequences, starts, counts, qkv[:, :C], qkv[:, C : 2 * C], qkv[:, 2 * C :], **interaction,
                inherited=inherited, out=y)
            inherited, room = dropped if config.propagate_in_depth else None, x
            if layer == config.n_layer - 1 and len(wanted) < len(x):  # of the others, the cache was all that is needed
                x, y, n, hidden, room = x[wanted], y[wanted], None, None, None
            x = K.linear(y, p["attn.c_proj"], x, threads, room)
            n = K.layer_norm(x, p["ln_2.weight"], p["ln_2.bias"], config.layer_norm_epsilon, threads, n)
            hidden = K.linear(n, p["mlp.c_fc"], threads=threads, out=hidden)
            hidden = K.activation(hidden, config.activation_function, threads, hidden)
            x = K.linear(hidden, p["mlp.c_proj"], x, threads, x)
        return x
