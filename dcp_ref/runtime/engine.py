"""Decoding with a pruned cache: sequences, tokens in, logits out."""

import operator
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from dcp_ref.interaction import check_threshold
from dcp_ref.runtime import kernels, native, native_cache, native_kernels
from dcp_ref.runtime.block import Stats
from dcp_ref.runtime.cache import KVCache
from dcp_ref.runtime.decoder import Decoder
from dcp_ref.runtime.policies import Policy, for_model
from dcp_ref.runtime.storage import check_storage
from dcp_ref.runtime.turns import Turns
from dcp_ref.weights import Model

BACKENDS = ("native", "numpy")


class Engine:
    """Feeds tokens to sequences that share one cache, and returns logits; arithmetic is in float32.

    `backend` is "native" (C) or "numpy"; None takes native where it is built, else NumPy with one warning. `policy` is
    what decides a drop (policies.py): None is the learned scores where the model has them, else nothing is dropped. The
    logits and the live positions are those of the dense forward with that policy at alpha = inf.
    `threshold`: the learned rule drops a token unless its score is above it. A lower one keeps more, a higher one less;
    0 is what a model is trained for.
    `weights` and `kv` are how matrices, and keys and values, are stored: "float32", "float16" or "int8" (storage.py).
    `threads`: at most so many, and no more than OpenMP gives (OMP_NUM_THREADS, threadpoolctl); None is all of those.
    `max_cache_bytes` bounds the pages of the cache, owned and free.
    Raises TypeError or ValueError naming the argument, RuntimeError for a "native" that is not built.
    """

    def __init__(self, model: Model, backend: str | None = None, *, policy: Policy | None = None,
                 threshold: float = 0.0, weights: str = "float32", kv: str = "float32", threads: int | None = None,
                 max_cache_bytes: int | None = None) -> None:
        self.backend, self.config, self.weights = _backend(backend), model.config, check_storage("weights", weights)
        self.policy = for_model(model.config, policy)
        self.threshold = check_threshold(threshold, self.policy.learned)
        for name, value in (("threads", threads), ("max_cache_bytes", max_cache_bytes)):
            if isinstance(value, bool):  # it would pass for 0 or 1
                raise ValueError(f"{name} must be a positive integer or None, not {value}")
        self._threads = 0 if threads is None else operator.index(threads)
        if threads is not None and not 1 <= threads < 2**31:
            raise ValueError(f"threads must be a positive integer or None, not {threads}")
        if max_cache_bytes is not None and operator.index(max_cache_bytes) < 1:
            raise ValueError(f"max_cache_bytes must be positive or None, not {max_cache_bytes}")
        options: dict[str, Any] = {"max_bytes": max_cache_bytes, "kv": kv, "policy": self.policy,
                                   "threshold": self.threshold}
        self._cache: KVCache | native_cache.NativeCache
        if self.backend == "native":
            self._cache = native_cache.NativeCache(self.config, threads=self._threads, **options)
        else:
            self._cache = KVCache(self.config, **options)
        sort = native_kernels if self.backend == "native" else kernels
        self._decoder = Decoder(model, sort, self._cache, self.weights, self._threads)
        self._feeding = Turns("engine")  # one feed at a time: its steps use what it reserved
        self._length: dict[int, int | None] = {}  # tokens seen; None while a feed is under way

    def new_sequence(self) -> int:
        """A handle of a new, empty sequence."""
        sequence = self._cache.new_sequence()
        self._length[sequence] = 0
        return sequence

    def fork(self, sequence: int) -> int:
        """A handle of a new sequence with the same tokens, to be continued another way; the parent never changes.

        Raises ValueError when it is unknown, CacheFull past max_cache_bytes, MemoryError; nothing has changed then.
        """
        with self._feeding:
            length = self._start(sequence)
            child = self._cache.fork(sequence)
            self._length[child] = length
            return child

    def trim(self) -> None:
        """Give pages of the cache that are free back to the operating system."""
        with self._feeding:  # or it would take what a feed has reserved
            self._cache.trim()

    def release(self, sequence: int) -> None:
        """Forget a sequence and free its slots. Raises ValueError when it is unknown or was released."""
        with self._feeding:
            self._cache.release(sequence)
            del self._length[sequence]

    def feed(
        self, sequences: Sequence[int], token_lists: Sequence[Sequence[int]], logits: str = "last"
    ) -> list[np.ndarray]:
        """Append token_lists[b] to sequences[b]; any number of tokens each. Returns float32 logits, a fresh array each.

        logits="last" gives [V], those of a sequence's last token; "all" gives [tokens, V].
        Raises ValueError naming the culprit for an empty list, a repeated or released sequence, a token id outside
        the vocabulary or a position >= n_positions, and CacheFull past max_cache_bytes, MemoryError; no sequence has
        changed then.
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
        ends = np.cumsum(counts)
        wanted = ends - 1 if logits == "last" else np.arange(ends[-1])
        ids = np.concatenate(ids, dtype=np.int64, casting="unsafe")  # checked: uint64 too
        result = self._decoder.logits(sequences, starts, counts, ids, wanted)
        self._length.update(zip(sequences, map(operator.add, starts, counts), strict=True))
        return list(result) if logits == "last" else np.split(result, ends[:-1])

    def live_positions(self, sequence: int, layer: int) -> np.ndarray:  # -> int64 [N]
        """Positions of the tokens that this layer still holds, ascending, the last one fed included.

        Under `propagate_in_depth`, without those that an earlier layer dropped.
        """
        return self._cache.live_positions(sequence, layer)

    def live_counts(self, sequences: Sequence[int]) -> np.ndarray:  # B of them -> int64 [L, B]
        """How many tokens each layer holds of each sequence: the lengths of live_positions.

        Raises ValueError when a sequence is unknown or was released.
        """
        return self._cache.live_counts(sequences)

    def stats(self) -> Stats:
        """Live tokens, slots and bytes owned, and bytes reserved, over all layers and sequences."""
        return self._cache.stats()

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


def _backend(backend: str | None) -> str:
    if backend is None:
        backend = "native" if native.available() else "numpy"
        if backend == "numpy":
            warnings.warn(f"using the NumPy kernels, which are slow: {native.missing()}", stacklevel=3)
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is not one of {sorted(BACKENDS)}")
    if backend == "native" and not native.available():
        raise RuntimeError(f'{native.missing()}, or use backend="numpy"')
    return backend
