"""Decoding with a pruned cache: the layers of `model.py`, one row a token, and a cache in place of the mask."""

import threading
import warnings
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from dcp_ref.config import Config
from dcp_ref.layers import layer_norm, linear
from dcp_ref.model import block_params, mlp
from dcp_ref.runtime import native
from dcp_ref.runtime.block import Stats
from dcp_ref.runtime.cache import KVCache
from dcp_ref.weights import Model

CACHES: dict[str, Callable[[Config], KVCache | native.NativeCache]] = {
    "numpy": KVCache,
    "native": native.NativeCache,
}


class Engine:
    """Feeds tokens to sequences that share one cache, and returns logits; float32 throughout.

    `backend` is "native" (C) or "numpy"; None takes native where it is built, else NumPy with one warning. The logits
    and the live positions are those of the dense forward at alpha = inf.
    Raises ValueError for an unknown backend, RuntimeError for a "native" that is not built.
    """

    def __init__(self, model: Model, backend: str | None = None) -> None:
        if backend is None:
            backend = "native" if native.available() else "numpy"
            if backend == "numpy":
                warnings.warn("the C extension is not built: using the NumPy cache, which is slow", stacklevel=2)
        if backend not in CACHES:
            raise ValueError(f"backend {backend!r} is not one of {sorted(CACHES)}")
        self.backend = backend
        self.config = model.config
        params = {name: np.ascontiguousarray(value, np.float32) for name, value in model.params.items()}
        self._wte, self._wpe = params["wte.weight"], params["wpe.weight"]
        self._head = params.get("lm_head.weight", self._wte)
        self._ln_f = params["ln_f.weight"], params["ln_f.bias"]
        self._blocks = [block_params(params, layer) for layer in range(self.config.n_layer)]
        self._cache = CACHES[backend](self.config)
        self._feeding = threading.Lock()  # one feed at a time: its steps use what it reserved
        self._length: dict[int, int | None] = {}  # tokens seen; None while a feed is under way

    def new_sequence(self) -> int:
        """A handle of a new, empty sequence."""
        sequence = self._cache.new_sequence()
        self._length[sequence] = 0
        return sequence

    def release(self, sequence: int) -> None:
        """Forget a sequence and free its slots. Raises ValueError when it is unknown or was released."""
        self._cache.release(sequence)
        del self._length[sequence]

    def feed(
        self, sequences: Sequence[int], token_lists: Sequence[Sequence[int]], logits: str = "last"
    ) -> list[np.ndarray]:
        """Append token_lists[b] to sequences[b]; any number of tokens each. Returns float32 logits, a fresh array each.

        logits="last" gives [V], those of a sequence's last token; "all" gives [tokens, V].
        Raises ValueError naming the culprit for an empty list, a repeated or released sequence, a token id outside
        the vocabulary or a position >= n_positions, and MemoryError when the cache is full; no sequence has changed
        then.
        """
        if logits not in ("last", "all"):
            raise ValueError(f'logits must be "last" or "all", not {logits!r}')
        with self._feeding:
            return self._feed(list(sequences), token_lists, logits)

    def _feed(self, sequences, token_lists, logits):
        starts = [self._start(sequence) for sequence in sequences]
        ids = self._checked(sequences, token_lists, starts)
        counts = [len(row) for row in ids]
        self._cache.reserve(sequences, counts)
        self._length.update(dict.fromkeys(sequences))
        x = self._blocks_forward(sequences, starts, counts, np.concatenate(ids))
        ends = np.cumsum(counts)
        if logits == "last":
            x = x[ends - 1]
        x, _ = layer_norm(x, *self._ln_f, self.config.layer_norm_epsilon)
        result = x @ self._head.T
        self._length.update(zip(sequences, np.add(starts, counts).tolist(), strict=True))
        return list(result) if logits == "last" else np.split(result, ends[:-1])

    def live_positions(self, sequence: int, layer: int) -> np.ndarray:  # -> int64 [N]
        """Positions of the tokens that this layer still holds, ascending, the last one fed included.

        Under `propagate_in_depth`, without those that an earlier layer dropped.
        """
        return self._cache.live_positions(sequence, layer)

    def stats(self) -> Stats:
        """Live tokens, slots and bytes owned, and bytes reserved, over all layers and sequences."""
        return self._cache.stats()

    def _blocks_forward(self, sequences, starts, counts, ids):  # N ids in all -> [N, C]
        positions = np.concatenate([np.arange(start, start + n) for start, n in zip(starts, counts, strict=True)])
        x = self._wte[ids] + self._wpe[positions]
        inherited = None
        for layer, p in enumerate(self._blocks):
            n, _ = layer_norm(x, p["ln_1.weight"], p["ln_1.bias"], self.config.layer_norm_epsilon)
            qkv, _ = linear(n, p["attn.c_attn.weight"], p["attn.c_attn.bias"])
            q, k, v = (np.ascontiguousarray(part) for part in np.split(qkv, 3, axis=-1))
            interaction = {}
            if self.config.int_n_embd is not None:
                interaction = {
                    "q_int": n @ p["attn.q_int.weight"],
                    "k_int": n @ p["attn.k_int.weight"],
                    "beta": float(p["attn.int_bias"][0]),
                }
            y, dropped = self._cache.step(
                layer, sequences, starts, counts, q, k, v, **interaction, inherited=inherited
            )
            inherited = dropped if self.config.propagate_in_depth else None
            x = x + linear(y, p["attn.c_proj.weight"], p["attn.c_proj.bias"])[0]
            x = x + mlp(x, p, self.config)[0]
        return x

    def _start(self, sequence: int) -> int:
        if not isinstance(sequence, (int, np.integer)) or sequence not in self._length:
            raise ValueError(f"sequence {sequence!r} is unknown or was released")
        start = self._length[sequence]
        if start is None:
            raise ValueError(f"sequence {sequence} was interrupted in the middle of a feed: release it")
        return start

    def _checked(self, sequences: list, token_lists: Iterable, starts: list) -> list[np.ndarray]:
        rows = [np.asarray(row) for row in token_lists]
        if not sequences or len(rows) != len(sequences):
            raise ValueError(f"{len(sequences)} sequences and {len(rows)} token lists: one of each is needed")
        if len(set(sequences)) < len(sequences):
            repeated = next(s for s in sequences if sequences.count(s) > 1)
            raise ValueError(f"sequence {repeated} is given twice")
        for sequence, row, start in zip(sequences, rows, starts, strict=True):
            if row.ndim != 1 or not row.size or row.dtype.kind not in "iu":
                raise ValueError(f"sequence {sequence}: give a list of at least one integer token id")
            if row.min() < 0 or row.max() >= self.config.vocab_size:
                bad = row[(row < 0) | (row >= self.config.vocab_size)][0]
                raise ValueError(f"sequence {sequence}: token id {bad} is not in [0, {self.config.vocab_size})")
            if start + row.size > self.config.n_positions:
                raise ValueError(
                    f"sequence {sequence}: position {start + row.size - 1} is not below n_positions "
                    f"({self.config.n_positions})"
                )
        return rows
