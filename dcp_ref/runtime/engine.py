"""Decoding with a pruned cache: sequences, tokens in, logits out."""

import math
import operator
import warnings
from collections.abc import Iterable
from os import PathLike
from typing import Any

import numpy as np

from dcp_ref.checkpoints.weights import Model
from dcp_ref.config import threshold_or_kept
from dcp_ref.policies import Policy, for_model
from dcp_ref.runtime import kernels, saving
from dcp_ref.runtime.cache import KVCache
from dcp_ref.runtime.decoder import Decoder
from dcp_ref.runtime.pins import pinned_rows
from dcp_ref.runtime.precision import check_storage
from dcp_ref.runtime.stats import Stats

BACKENDS = ("native", "numpy")


class Engine:
    """Feeds tokens to sequences that share one cache, and returns logits; arithmetic is in float32.

    `backend` is "native" (C) or "numpy"; None takes native where it is built, else NumPy with one warning.
    `policy` decides what is dropped (policies.py): None is the learned scores where the model has them, else nothing is
    dropped. The logits and the live positions are those of the dense forward with that policy at alpha = inf.
    `threshold`: the learned rule drops a token unless its score is above the threshold. A lower threshold keeps more;
    a model is trained for 0. `kept`, instead: the share of the context to keep, for which the model's config has a
    threshold (Config.threshold_for).
    A rule of one's own (policies.rule) decodes with NumPy's cache, and with the native backend's kernels.
    `weights` is the storage type of matrices, `kv` of keys and values: "float32", "float16" or "int8" (precision.py).
    `threads` is the most that are used, and no more than OpenMP gives (OMP_NUM_THREADS, threadpoolctl); None is all.
    `max_cache_bytes` bounds the bytes of the cache. With the native backend they are its pages, owned and free.
    Threads may share an engine: they wait for each other. A call that fails or is interrupted has done all or nothing.
    Raises TypeError or ValueError naming the argument, RuntimeError for a "native" that is not built.
    """

    def __init__(self, model: Model, backend: str | None = None, *, policy: Policy | None = None,
                 threshold: float = 0.0, weights: str = "float32", kv: str = "float32", threads: int | None = None,
                 max_cache_bytes: int | None = None, kept: float | None = None) -> None:
        self.backend, self.config, self.weights, self.kv = (
            _backend(backend), model.config, check_storage("weights", weights), check_storage("kv", kv))
        self.policy = for_model(model.config, policy)
        self.threshold = threshold_or_kept(model.config, threshold, kept, self.policy.learned)
        for name, value, end in (("threads", threads, 2**31), ("max_cache_bytes", max_cache_bytes, math.inf)):
            if value is not None and (isinstance(value, bool) or not 1 <= operator.index(value) < end):
                raise ValueError(f"{name} must be a positive integer or None, not {value}")
        options: dict[str, Any] = {"max_bytes": max_cache_bytes, "kv": kv, "policy": self.policy,
                                   "threshold": self.threshold}
        self._cache: Any
        self._decoder: Any
        self._saving: Any = saving
        if self.backend == "native":
            from dcp_ref.native import kernels as native_kernels
            from dcp_ref.native import saving as native_saving
            from dcp_ref.native.cache import NativeCache
            from dcp_ref.native.decoder import NativeDecoder

            self._rows = native_kernels.rows
            if self.policy.rule is None:
                self._cache = NativeCache(self.config, threads=threads or 0, **options)
                self._decoder, self._saving = NativeDecoder(model, self._cache, weights), native_saving
            else:
                self._cache = KVCache(self.config, **options)
                self._decoder = Decoder(model, native_kernels, self._cache, weights, threads or 0)
        else:
            self._cache, self._rows = KVCache(self.config, **options), kernels.rows
            self._decoder = Decoder(model, kernels, self._cache, weights)

    def new_sequence(self) -> int:
        """A handle of a new, empty sequence."""
        return self._cache.new_sequence()

    def fork(self, sequence: int) -> int:
        """A handle of a new sequence with the same tokens, to be continued another way; the parent never changes.

        The two share memory until they differ. Raises ValueError when it is unknown, MemoryError; nothing has changed
        then.
        """
        return self._cache.fork(sequence)

    def save(self, sequence: int, path: str | PathLike[str]) -> None:
        """Write a sequence to a file for `restore`; an older one is replaced whole, or not at all.

        Raises ValueError when the sequence is unknown or was released, OSError.
        """
        saving.write(path, self._saving.export(self._cache, sequence), self._owner())

    def restore(self, path: str | PathLike[str]) -> int:
        """A handle of a new sequence with the tokens that `save` wrote: it goes on as the saved one would, to the bit.

        Raises ValueError, naming what differs, when the file was saved by an engine with another model, policy,
        threshold, storage, backend or version of the package, or is damaged; CacheFull past max_cache_bytes,
        MemoryError. Nothing has changed then. Of a rule of one's own, only the names are compared.
        """
        saved = saving.read(path, self._owner(), self._cache, self._saving.fields)
        return self._saving.restore(self._cache, saved)

    def _owner(self) -> dict[str, Any]:
        """What saved tokens belong to."""
        return saving.owner(self.config, self.policy, self._decoder.weights.sha256, backend=self.backend,
                            threshold=float(self.threshold), weights_storage=self.weights, kv=self.kv)

    def length(self, sequence: int) -> int:
        """How many tokens the sequence has been fed, dropped ones included."""
        return self._cache.length(sequence)

    def trim(self) -> None:
        """Give free pages and working memory back to the operating system: no sequence needs them."""
        self._cache.trim()

    def release(self, sequence: int) -> None:
        """Forget a sequence and free its slots. Raises ValueError when it is unknown or was released."""
        self._cache.release(sequence)

    def feed(
        self, sequences: Iterable[int], token_lists: Iterable[Iterable[int]], logits: str = "last",
        drops: list[np.ndarray] | None = None, pinned: Iterable[bool | Iterable[bool]] | None = None,
    ) -> list[np.ndarray]:
        """Append token_lists[b] to sequences[b]; any number of tokens each. Returns float32 logits, a fresh array each.

        logits="last" gives [V], those of a sequence's last token; "all" gives [tokens, V].
        `drops`, a list, gets one array a layer, int32 [n, 2]: the pairs (row, position) of tokens that left this layer,
        in ascending order. Rows count the tokens of this call, those of the first sequence first; a position is one in
        the row's own sequence. The arrays may be views of a larger one: copy those that are kept.
        `pinned` has an entry for each sequence, as token_lists has: true or false for all of its tokens here, or a list
        of bools, one a token. A pinned token is never dropped, in any layer, by any rule; and no rule counts it.
        Raises ValueError naming the culprit for an empty list, a repeated or released sequence, a token id outside
        the vocabulary, a position >= n_positions or pins that do not fit, and CacheFull past max_cache_bytes,
        MemoryError; no sequence has changed then.
        """
        if logits not in ("last", "all"):
            raise ValueError(f'logits must be "last" or "all", not {logits!r}')
        sequences, rows = list(sequences), list(map(np.asarray, token_lists))  # they may themselves use this engine
        ids = self._checked(sequences, rows)
        counts = list(map(len, rows))
        pins = None if pinned is None else pinned_rows(pinned, sequences, counts)
        ends = np.cumsum(counts)
        wanted = ends - 1 if logits == "last" else np.arange(ends[-1])
        out = self._rows(len(wanted), self.config.vocab_size)
        result = list(out) if logits == "last" else np.split(out, ends[:-1])  # now: nothing may fail after the feed
        self._decoder.feed(sequences, counts, ids, wanted, out, drops, pins)
        return result

    def live_positions(self, sequence: int, layer: int) -> np.ndarray:  # -> int64 [N]
        """Positions of the tokens that this layer still holds, ascending, the last one fed included.

        Under `propagate_in_depth`, a layer does not hold what an earlier layer dropped.
        """
        return self._cache.live_positions(sequence, layer)

    def live_counts(self, sequences: Iterable[int]) -> np.ndarray:  # B of them -> int64 [L, B]
        """How many tokens each layer holds of each sequence: the lengths of their live_positions.

        Raises ValueError when a sequence is unknown or was released.
        """
        return self._cache.live_counts(sequences)

    def stats(self) -> Stats:
        """Live tokens, slots and bytes owned, and bytes reserved, over all layers and sequences."""
        return self._cache.stats()

    def _checked(self, sequences: list[int], rows: list[np.ndarray]) -> np.ndarray:  # -> int64 [N]
        """All token ids, one sequence after the other, in a new array. Raises ValueError."""
        if not sequences or len(rows) != len(sequences):
            raise ValueError(f"{len(sequences)} sequences and {len(rows)} token lists: one of each is needed")
        for sequence, row in zip(sequences, rows, strict=True):
            if row.ndim != 1 or not row.size or row.dtype.kind not in "iu":
                raise ValueError(f"sequence {sequence}: give a list of at least one integer token id")
        V, ids = self.config.vocab_size, np.concatenate(rows, dtype=np.int64, casting="unsafe")
        if ids.min() < 0 or ids.max() >= V:  # a uint64 beyond int64 has become negative
            sequence, bad = next((s, i) for s, row in zip(sequences, rows, strict=True) for i in row if not 0 <= i < V)
            raise ValueError(f"sequence {sequence}: token id {bad} is not in [0, {V})")
        return ids


def _backend(backend: str | None) -> str:
    from dcp_ref import native

    if backend is None:
        backend = "native" if native.available() else "numpy"
        if backend == "numpy":
            warnings.warn(f"using the NumPy kernels, which are slow: {native.missing()}", stacklevel=3)
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is not one of {sorted(BACKENDS)}")
    if backend == "native" and not native.available():
        raise RuntimeError(f'{native.missing()}, or use backend="numpy"')
    return backend
