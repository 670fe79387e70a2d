"""The memory that C works on: arrays side by side, the pages of a cache, sequences and drafts of them."""

import contextlib
import mmap
import operator
from typing import Any, NamedTuple

import numpy as np

from dcp_ref.native.extension import ffi, lib
from dcp_ref.runtime.checks import check_bytes

OUT_OF_MEMORY = "out of memory: release a sequence"
CHUNK_BYTES = 64 << 20  # asked of the system at once: so much that huge pages make up nearly all of it


class Memory:
    """Memory for many arrays, side by side in chunks of at least `chunk_bytes`.

    A chunk is large enough for the system's huge pages, so fewer addresses are translated. Reading weights of 1 to 3 MB
    one after the other is a tenth faster there than in small pages.
    """

    def __init__(self, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.chunk_bytes, self._left = chunk_bytes, np.empty(0, np.uint8)

    def array(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """An uninitialised array that starts at a multiple of 64 bytes, a cache line. Raises MemoryError."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        taken = -(-size // 64) * 64
        if taken > len(self._left):
            try:
                chunk = np.empty(max(taken, self.chunk_bytes) + 64, np.uint8)  # takes memory when first written
            except MemoryError:  # the address space may still have room for what is needed
                chunk = np.empty(taken + 64, np.uint8)
            address = int(ffi.cast("uintptr_t", ffi.from_buffer(chunk)))  # chunk.ctypes imports, perhaps too late
            self._left = chunk[-address % 64 :]
        array, self._left = self._left[:size], self._left[taken:]
        return array.view(dtype).reshape(shape)


class Pages:
    """The pages of a cache in C, in chunks of the system's memory that live as long as this object.

    Every chunk is kept here before C points into it. If interrupted in between, the chunk is merely unused.
    """

    def __init__(self, pool: Any, max_bytes: int | None) -> None:
        self.pool, self.page_bytes, self.max_bytes = pool, lib.dcp_page_bytes(pool), max_bytes
        self._kept: list[Any] = []  # chunks, and arrays in which the pool lists its idle pages

    def make_free(self, pages: int) -> None:
        """Have at least this number of free pages. Raises CacheFull or MemoryError; nothing has changed then."""
        pool = self.pool
        while lib.dcp_pool_grow(pool, pages) != lib.DCP_OK:
            check_bytes((pool.pages + max(pages - pool.n_free, 0)) * self.page_bytes, self.max_bytes)
            need = pages - pool.n_free - pool.n_spare
            if need > 0:
                self._add(need, max(need, min(pool.pages, CHUNK_BYTES // self.page_bytes)))

    def _add(self, need: int, wanted: int) -> None:
        """Adds `wanted` spare pages; only `need` if the system refuses that many. Raises MemoryError."""
        pool = self.pool
        if (total := pool.pages + pool.n_spare + wanted) > pool.room:
            idle = ffi.new("dcp_page[]", 2 * total)
            self._kept.append(idle)
            lib.dcp_pool_list(pool, idle, 2 * total)
        try:
            chunk = _map(wanted * self.page_bytes)
        except MemoryError:
            wanted = need
            chunk = _map(wanted * self.page_bytes)
        self._kept.append(chunk)
        lib.dcp_pool_add(pool, chunk, wanted)  # refused if a signal's handler came between: make_free tries again


class Sequence:
    """A dcp_sequence in memory that Python owns: so no finalizer has to free it."""

    def __init__(self, cache: Any) -> None:
        self._memory = ffi.new("uint64_t[]", -(-lib.dcp_sequence_bytes(cache) // 8))
        self.c = lib.dcp_sequence_init(cache, self._memory)


class Batch(NamedTuple):
    """The sequences of a step as C arrays. All layers of the step share one."""

    handles: list[int]
    counts: list[int]
    starts: list[int]
    sequences: list[Sequence]
    c_sequences: Any  # dcp_sequence *[]
    c_starts: Any  # size_t[]
    c_counts: Any  # size_t[]
    pinned: Any  # uint8_t[N], or NULL where no token is pinned
    workspace: Any = None  # what `step` works in


def c_batch(handles: list[int], sequences: list[Sequence], counts: list[int], pinned: np.ndarray | None) -> Batch:
    """A batch of counts[b] tokens of each sequence; `pinned`, contiguous bool [N], marks those that are pinned."""
    starts = [sequence.c.layer[0].seen for sequence in sequences]
    return Batch(handles, counts, starts, sequences, ffi.new("dcp_sequence *[]", [s.c for s in sequences]),
                 ffi.new("size_t[]", starts), ffi.new("size_t[]", counts),
                 ffi.NULL if pinned is None else ffi.from_buffer("uint8_t[]", pinned))


class Drafts:
    """Forks of a batch's sequences, without handles: these become what the drafts are, all at once, or stay."""

    def __init__(self, cache: Any) -> None:
        self._cache, self.sequences = cache, list[Sequence]()

    def fork(self, batch: Batch) -> None:
        """Make a draft of each sequence. One that was released makes a draft that cannot be adopted."""
        for sequence in batch.sequences:
            self.sequences.append(Sequence(self._cache))  # first: `release` then knows it
            lib.dcp_sequence_fork(self._cache, self.sequences[-1].c, sequence.c)

    def adopt(self, batch: Batch) -> bool:
        """Give the batch's sequences what the drafts are; False where one was fed or released since `fork`."""
        drafts = ffi.new("dcp_sequence *[]", [draft.c for draft in self.sequences])
        return lib.dcp_sequence_adopt(
            self._cache, batch.c_sequences, drafts, batch.c_counts, len(self.sequences)) == lib.DCP_OK

    def release(self) -> None:
        """Give the drafts' pages up; does nothing for those that were adopted."""
        for draft in self.sequences:
            lib.dcp_sequence_release(self._cache, draft.c)


def check_page_slots(page_slots: int) -> int:
    """The slots of a page. Raises TypeError or ValueError."""
    if isinstance(page_slots, bool) or not 1 <= operator.index(page_slots) <= 32:
        raise ValueError(f"page_slots must be 1 .. 32, not {page_slots}")
    return page_slots


def _map(size: int) -> Any:  # -> unsigned char *
    """Zeros from the system, which take memory when first written. Raises MemoryError."""
    try:
        memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE)
    except (OSError, OverflowError):
        raise MemoryError(OUT_OF_MEMORY) from None
    with contextlib.suppress(AttributeError, OSError):  # a system without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)  # fewer addresses to translate while keys are read in order
    return ffi.from_buffer("unsigned char[]", memory)
