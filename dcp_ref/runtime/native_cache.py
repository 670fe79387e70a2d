"""The cache in C: csrc/dcp.h is its manual."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from dcp_ref.config import Config
from dcp_ref.runtime.block import (
    Handles,
    Stats,
    check_arrays,
    check_counts,
    check_layer,
    check_pages,
    check_starts,
    page_layout,
)
from dcp_ref.runtime.chunks import Chunks
from dcp_ref.runtime.native import STORAGE, available, ffi, lib, missing, pointer, rows
from dcp_ref.runtime.policies import Policy, float32_threshold, for_model
from dcp_ref.runtime.recording import call
from dcp_ref.runtime.storage import Room, check_storage
from dcp_ref.runtime.turns import Turns, in_turn

RELEASED = "a sequence was released in the middle of its step or reserve"


class _Batch(NamedTuple):
    """Some sequences and how many rows each has, for C; the last one is kept, as every layer has the same.

    Where the next one differs in `starts` only, these are changed in place: a step's calls can be made again.
    """

    handles: list[int]
    counts: list[int]
    c_sequences: Any  # of dcp_sequence pointers
    c_starts: Any
    c_counts: Any
    starts: list[int]
    dropped: np.ndarray  # room for the pairs of a step


class NativeCache:
    """The same methods, arguments and results as KVCache, in C.

    A step uses at most `threads` threads, and no more than OpenMP gives (OMP_NUM_THREADS, threadpoolctl); 0 is all.
    """

    def __init__(self, config: Config, page_slots: int = 32, max_bytes: int | None = None, kv: str = "float32",
                 policy: Policy | None = None, threshold: float = 0.0, threads: int = 0) -> None:
        if not available():
            raise RuntimeError(f"{missing()}, or use KVCache")
        check_pages(page_slots, max_bytes)
        self.config, self.page_slots, self.threads = config, page_slots, threads
        self.kv, self.policy = check_storage("kv", kv), for_model(config, policy)
        self.threshold = float32_threshold(threshold, self.policy)
        self._rank = self.policy.rank(config)
        self._scales = [config.attention_scale(layer) for layer in range(config.n_layer)]
        self._cache = ffi.gc(self._new_cache(), lib.dcp_cache_clear)
        self._chunks = Chunks(ffi.addressof(self._cache, "pool"), max_bytes)
        self._turns = Turns("cache")
        self._sequences = Handles()  # of dcp_sequence pointers, which the cache owns
        self.batch: _Batch | None = None  # of the last `reserve` or `step`

    def _new_cache(self) -> Any:
        """An empty dcp_cache. Raises MemoryError."""
        config, policy = self.config, self.policy
        if max(config.n_layer, config.n_positions, config.n_embd, self._rank) > 2**24:
            raise MemoryError(f"no cache for {config}")
        parts, pieces = page_layout(config, self.page_slots, self.kv, policy)
        threads, v_panels = lib.dcp_threads(self.threads), -(-config.head_dim // lib.DCP_LANES)
        list_pages = -(-config.n_positions // self.page_slots)
        tiles = threads * config.n_head * (list_pages + v_panels)
        self._scratch = Room(0).array((tiles * lib.DCP_TILE_ROWS * lib.DCP_LANES,), "float32")
        self._round = np.empty(0, np.uint8)
        return ffi.new("dcp_cache *", {
            "layers": config.n_layer, "positions": config.n_positions, "heads": config.n_head,
            "channels": config.n_embd, "head_dim": config.head_dim, "rank": self._rank, "kv": STORAGE[self.kv],
            "part": parts, "v_panels": v_panels, "list_pages": list_pages,
            "threads": threads, "scratch": ffi.from_buffer(self._scratch),
            "policy": {"window": policy.window or 0, "first": policy.first, "stride": policy.stride,
                       "heavy": policy.heavy or 0, "by_attention": policy.heavy is not None,
                       "delay": min(config.int_delay, config.n_positions), "threshold": self.threshold},
            "pool": {"page_slots": self.page_slots, "piece_bytes": pieces}})

    @in_turn
    def new_sequence(self) -> int:
        """A handle of a new, empty sequence. Raises MemoryError."""
        return self._add(lib.dcp_sequence_new(self._cache))

    @in_turn
    def fork(self, sequence: int) -> int:
        """A handle of a new sequence with the same tokens; what is fed to one does not reach the other.

        Raises ValueError when the sequence is unknown, CacheFull past max_bytes, MemoryError; nothing has changed then.
        """
        self._chunks.make_free(sum(slots.pages for slots in self._slots(self._sequences[sequence])))
        return self._add(lib.dcp_sequence_fork(self._cache, self._sequences[sequence]))

    @in_turn
    def release(self, sequence: int) -> None:
        """Forget a sequence. Raises ValueError when it is unknown."""
        found = self._sequences.pop(sequence)
        self.batch = None
        lib.dcp_sequence_free(self._cache, found)

    @in_turn
    def reserve(self, sequences: Iterable[int], counts: Iterable[int]) -> None:
        """Make room in every layer for counts[b] more tokens of sequences[b]: then the steps of these cannot fail.

        Raises ValueError (unknown or repeated sequence, too many tokens), CacheFull, MemoryError, or RuntimeError when
        a signal's handler released a sequence meanwhile; nothing has changed then. Room is for the case that nothing is
        dropped; the system gives memory only to what is then used.
        """
        handles = list(sequences)
        seen = [max(slots.seen for slots in self._slots(s)) for s in self._sequences.distinct(handles)]
        counts = check_counts(self.config, seen, counts)
        n, layers = len(handles), self.config.n_layer
        batch = self._batch_of(handles, seen, counts)  # after `counts`: a generator may have released one
        if batch is not self.batch:
            raise RuntimeError(RELEASED)
        pages = lib.dcp_more_pages(self._cache, batch.c_sequences, batch.c_counts, n, 0, layers)
        needed = lib.dcp_round_bytes(self._cache, batch.c_counts, n)
        room = np.empty(needed, np.uint8) if needed > self._cache.round_bytes else None
        self._chunks.make_free(pages)
        if room is not None:
            self._cache.round_bytes = 0  # an interrupt before the last line leaves no room, not one that is gone
            self._round = room
            self._cache.round = ffi.from_buffer(room)
            self._cache.round_bytes = needed

    @in_turn
    def trim(self) -> None:
        """Give the free pages back to the operating system."""
        lib.dcp_pool_trim(ffi.addressof(self._cache, "pool"))

    @in_turn
    def step(self, layer: int, sequences: Iterable[int], starts: Iterable[int], counts: Iterable[int],
             q: np.ndarray, k: np.ndarray, v: np.ndarray,
             q_int: np.ndarray | None = None, k_int: np.ndarray | None = None, beta: float = 0.0,
             inherited: np.ndarray | None = None, out: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Decode one layer of a ragged block: see KVCache.step. q, k and v may be columns of one array."""
        layer, handles, starts, counts = check_layer(self.config, layer), list(sequences), list(starts), list(counts)
        if self.batch is None or (self.batch.handles, self.batch.starts, self.batch.counts) != (
                handles, starts, counts):
            seen = [s.layer[layer].seen for s in self._sequences.distinct(handles)]
            counts = check_counts(self.config, seen, counts)
            check_starts(seen, starts)
        arrays = check_arrays(self.config, self.policy, counts, q, k, v, q_int, k_int, beta, inherited)
        batch = self._batch_of(handles, starts, counts)  # only now: beta's own code may have released a sequence
        out = rows(len(arrays.q), self.config.n_embd, out)
        q, k, v = _strided(arrays.q, arrays.k, arrays.v)
        q_int, k_int = _strided(arrays.q_int, arrays.k_int)
        block = ffi.new("dcp_block *", (
            layer, len(handles), batch.c_sequences, batch.c_starts, batch.c_counts,
            *map(pointer, (q, k, v, q_int, k_int)),
            q.strides[0] // 4, q_int.strides[0] // 4, self._scales[layer], arrays.beta,
            ffi.from_buffer("int32_t[]", arrays.inherited), len(arrays.inherited), self.threads))
        dropped = call(self._step, pointer(out), batch, block, (q, k, v, q_int, k_int, arrays.inherited))
        return out, batch.dropped[:dropped].copy()

    @in_turn
    def _step(self, out: Any, batch: _Batch, block: Any, _: tuple) -> int:
        """dcp_step; the last argument is what the block's pointers point to.

        Raises RuntimeError when a sequence has been released since: a signal's handler can do that.
        """
        if batch is not self.batch:
            raise RuntimeError(RELEASED)
        n: int = lib.dcp_step(out, ffi.from_buffer("int32_t[]", batch.dropped), self._cache, block)
        if n == lib.DCP_EINVAL:
            found = self._sequences.distinct(batch.handles)
            check_starts([s.layer[block.layer].seen for s in found], batch.starts)
        if n < 0:
            raise RuntimeError("step without the reserve that it needs")
        return n

    @in_turn
    def live_positions(self, sequence: int, layer: int) -> np.ndarray:  # -> int64 [N]
        """Positions of the live tokens, ascending."""
        table = self.slot_table(sequence, layer)
        return np.sort(table[table >= 0]).astype(np.int64)

    @in_turn
    def live_counts(self, sequences: Iterable[int]) -> np.ndarray:  # B of them -> int64 [L, B]
        """How many tokens each layer holds of each sequence."""
        found = [self._sequences[sequence] for sequence in sequences]
        return np.array([[s.layer[layer].live for s in found] for layer in range(self.config.n_layer)], np.int64)

    @in_turn
    def slot_table(self, sequence: int, layer: int) -> np.ndarray:  # -> int32 [pages, page_slots]
        """The position of the token in every slot, -1 in a free one."""
        slots = self._sequences[sequence].layer[check_layer(self.config, layer)]
        table = np.full((slots.pages, self.page_slots), -1, np.int32)
        for p, row in enumerate(table):
            position = lib.dcp_positions(self._cache, slots.page[p])
            live = [slot for slot in range(self.page_slots) if slots.bitmap[p] >> slot & 1]
            row[live] = [position[slot] for slot in live]
        return table

    @in_turn
    def stats(self) -> Stats:
        """Totals over layers and sequences, and the bytes of scratch."""
        pool, layers = self._cache.pool, [slots for sequence in self._sequences for slots in self._slots(sequence)]
        return Stats(
            sum(slots.live for slots in layers), sum(slots.pages for slots in layers) * self.page_slots,
            (pool.pages - pool.n_free) * self._chunks.page_bytes, pool.pages * self._chunks.page_bytes,
            self._scratch.nbytes + self._round.nbytes)

    def _slots(self, sequence: Any) -> list[Any]:
        """The dcp_slots of every layer."""
        return [sequence.layer[layer] for layer in range(self.config.n_layer)]

    def _add(self, sequence: Any) -> int:
        if sequence == ffi.NULL:
            raise MemoryError("no memory for a new sequence: release another")
        return self._sequences.add(sequence)

    def _batch_of(self, handles: list, starts: list, counts: list) -> _Batch:
        batch = self.batch
        if batch is None or (batch.handles, batch.counts) != (handles, counts):
            found = self._sequences.distinct(handles)
            batch = self.batch = _Batch(
                handles, counts, ffi.new("dcp_sequence *[]", found), ffi.new("size_t[]", starts),
                ffi.new("size_t[]", counts), starts, np.empty((len(handles) * self.config.n_positions, 2), np.int32))
        batch.starts[:] = batch.c_starts[0 : len(starts)] = starts
        return batch


def _strided(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """The arrays, or copies, with their rows equally far apart in all."""
    first = arrays[0].strides
    same = arrays[1].strides == first and arrays[-1].strides == first
    return arrays if same and first[0] >= 0 and first[0] % 4 == 0 else tuple(map(np.ascontiguousarray, arrays))
