"""The cache in C (csrc/dcp.h is its manual). The only file that imports the extension."""

import functools
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from dcp_ref.config import Config
from dcp_ref.runtime.block import Handles, Stats, check_block, check_counts, check_layer, check_pages

ffi: Any
lib: Any
try:
    from dcp_ref._native import ffi, lib  # type: ignore[import-not-found, no-redef]
except ImportError:  # not built: the package runs on NumPy
    ffi = lib = None


def available() -> bool:
    """Whether the extension is built."""
    return lib is not None


def simd_level() -> str:
    """The instruction set that the C passes run with here: "avx512f", "avx2" or "baseline"; "" when not built."""
    return ffi.string(lib.dcp_simd_level()).decode() if available() else ""


def _check(code: int) -> int:
    """`code`, a result of 0 or more, or the exception for one of dcp.h's negative codes."""
    if code >= 0:
        return code
    raise {
        lib.DCP_ENOMEM: MemoryError("out of memory, or past max_bytes: release a sequence, or make a larger cache"),
        lib.DCP_EINVAL: ValueError("an argument is out of its range"),
        lib.DCP_ENOROOM: RuntimeError("step without the reserve that it needs"),
    }[code]


def _one_at_a_time(method: Callable) -> Callable:
    """C runs without Python's global lock: a cache that several threads use makes them wait for each other."""

    @functools.wraps(method)
    def waiting(self: "NativeCache", *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            return method(self, *args, **kwargs)

    return waiting


def _pointer(array: np.ndarray) -> Any:
    return ffi.from_buffer({"f": "float[]", "i": "int32_t[]"}[array.dtype.kind], array)


class NativeCache:
    """The same methods, arguments and results as KVCache, in C."""

    def __init__(self, config: Config, page_slots: int = 32, max_bytes: int | None = None) -> None:
        if not available():
            raise RuntimeError('C extension not built: install a C compiler and reinstall, or use backend="numpy"')
        check_pages(page_slots, max_bytes)
        self.config, self.page_slots, self.max_bytes = config, page_slots, max_bytes
        cache = lib.dcp_cache_new(config.n_layer, config.n_positions, config.n_head, config.n_embd,
                                  config.int_n_embd or 0, page_slots, min(max_bytes or 0, sys.maxsize))
        if cache == ffi.NULL:
            raise MemoryError(f"no cache for {config}")
        self._cache = ffi.gc(cache, lib.dcp_cache_free)
        self._lock = threading.RLock()
        self._sequences = Handles()  # of dcp_sequence pointers, which the cache owns

    @_one_at_a_time
    def new_sequence(self) -> int:
        """A handle of a new, empty sequence. Raises MemoryError."""
        sequence = lib.dcp_sequence_new(self._cache)
        if sequence == ffi.NULL:
            raise MemoryError("no memory for a new sequence")
        return self._sequences.add(sequence)

    @_one_at_a_time
    def release(self, sequence: int) -> None:
        """Forget a sequence. Raises ValueError when it is unknown."""
        lib.dcp_sequence_free(self._cache, self._sequences.pop(sequence))

    @_one_at_a_time
    def reserve(self, sequences: Iterable[int], counts: Iterable[int]) -> None:
        """Make room in every layer for counts[b] more tokens of sequences[b]: then the steps of these cannot fail.

        Raises ValueError (unknown or repeated sequence, too many tokens) or MemoryError; nothing has changed then.
        """
        handles = list(sequences)
        found = self._sequences.distinct(handles)
        seen = [max(s.layer[layer].seen for layer in range(self.config.n_layer)) for s in found]
        counts = check_counts(self.config, seen, counts)
        found = self._sequences.distinct(handles)  # again: `counts` may be a generator that released one
        c_sequences, c_counts = ffi.new("dcp_sequence *[]", found), ffi.new("size_t[]", counts)
        _check(lib.dcp_reserve(self._cache, c_sequences, c_counts, len(found)))

    @_one_at_a_time
    def step(self, layer: int, sequences: Iterable[int], starts: Iterable[int], counts: Iterable[int],
             q: np.ndarray, k: np.ndarray, v: np.ndarray,
             q_int: np.ndarray | None = None, k_int: np.ndarray | None = None, beta: float = 0.0,
             inherited: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Decode one layer of a ragged block: see KVCache.step."""
        layer = check_layer(self.config, layer)
        handles = list(sequences)
        seen = [s.layer[layer].seen for s in self._sequences.distinct(handles)]
        block = check_block(self.config, seen, starts, counts, q, k, v, q_int, k_int, beta, inherited)
        out = np.empty(block.q.shape, np.float32)
        dropped = np.empty((sum(seen) + len(out), 2), np.int32)
        arrays = {name: _pointer(getattr(block, name)) for name in ("q", "k", "v", "q_int", "k_int", "inherited")}
        found = self._sequences.distinct(handles)  # only now: `starts` may be a generator that released one
        c_sequences = ffi.new("dcp_sequence *[]", found)
        c_starts, c_counts = ffi.new("size_t[]", seen), ffi.new("size_t[]", block.counts)
        c_block = ffi.new("dcp_block *", {
            "layer": layer, "batch": len(found), "sequence": c_sequences, "start": c_starts, "count": c_counts,
            "scale": self.config.attention_scale(layer), "beta": block.beta, "pairs": len(block.inherited), **arrays})
        n = _check(lib.dcp_step(_pointer(out), _pointer(dropped), self._cache, c_block))
        return out, dropped[:n].copy()

    @_one_at_a_time
    def live_positions(self, sequence: int, layer: int) -> np.ndarray:  # -> int64 [N]
        """Positions of the live tokens, ascending."""
        table = self.slot_table(sequence, layer)
        return np.sort(table[table >= 0]).astype(np.int64)

    @_one_at_a_time
    def slot_table(self, sequence: int, layer: int) -> np.ndarray:  # -> int32 [pages, page_slots]
        """The position of the token in every slot, -1 in a free one."""
        layer = check_layer(self.config, layer)
        slots = self._sequences[sequence].layer + layer
        table = np.empty((slots.pages, self.page_slots), np.int32)
        lib.dcp_slot_table(_pointer(table), self._cache, slots)
        return table

    @_one_at_a_time
    def stats(self) -> Stats:
        """Totals over layers and sequences."""
        stats = lib.dcp_cache_stats(self._cache)
        return Stats(stats.live_tokens, stats.slots, stats.bytes_owned, stats.bytes_reserved)

    @_one_at_a_time
    def poison(self) -> None:
        """For tests: fill every slot that is not live with NaN. No result may change."""
        lib.dcp_poison(self._cache)
