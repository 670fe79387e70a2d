"""The memory of C: pages of a cache, and aligned arrays."""

import contextlib
import mmap
from typing import Any

import numpy as np

from dcp_ref.native.extension import ffi, lib
from dcp_ref.runtime.checks import check_bytes

OUT_OF_MEMORY = "out of memory: release a sequence"
CHUNK_BYTES = 64 << 20  # the most that is asked for beyond the need: then nearly all of it is in huge pages


class Memory:
    """Memory for many arrays, side by side in blocks so large that the system can back them with huge pages.

    Reading weights of 1 to 3 MB one after the other is a tenth faster than where each has small pages of its own: fewer
    addresses are translated.
    """

    def __init__(self, block_bytes: int = 64 << 20) -> None:
        self.block_bytes, self._left = block_bytes, np.empty(0, np.uint8)

    def array(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """An uninitialised array that starts at a multiple of 64 bytes, as vectors like it. Raises MemoryError."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        taken = -(-size // 64) * 64
        if taken > len(self._left):
            try:
                block = np.empty(max(taken, self.block_bytes) + 64, np.uint8)  # untouched: no memory yet
            except MemoryError:  # there may be address space enough for what is needed
                block = np.empty(taken + 64, np.uint8)
            self._left = block[-block.ctypes.data % 64 :]
        array, self._left = self._left[:size], self._left[taken:]
        return array.view(dtype).reshape(shape)


class Pages:
    """The pages of a cache in C, in chunks of the system's memory that live as long as this object.

    C points into what is kept here. So everything is kept first, then shown to C: an interrupt in between leaves memory
    that nobody uses, never memory that is gone.
    """

    def __init__(self, pool: Any, max_bytes: int | None) -> None:
        self.pool, self.page_bytes, self.max_bytes = pool, lib.dcp_page_bytes(pool), max_bytes
        self._kept: list[Any] = []  # chunks, and the arrays that the pool has listed its idle pages in

    def make_free(self, pages: int) -> None:
        """See to it that this number of pages is free. Raises CacheFull or MemoryError; nothing has changed then."""
        pool = self.pool
        while lib.dcp_pool_grow(pool, pages) != lib.DCP_OK:
            check_bytes((pool.pages + max(pages - pool.n_free, 0)) * self.page_bytes, self.max_bytes)
            need = pages - pool.n_free - pool.n_spare
            if need > 0:
                self._add(need, max(need, min(pool.pages, CHUNK_BYTES // self.page_bytes)))

    def _add(self, need: int, wanted: int) -> None:
        """More spare pages: `wanted`, or as many as are needed where the system refuses that. Raises MemoryError."""
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
        lib.dcp_pool_add(pool, chunk, wanted)  # refused where a signal's handler came between: make_free tries again


def _map(size: int) -> Any:  # -> unsigned char *
    """Zeros of the system's, which take memory when they are written first. Raises MemoryError."""
    try:
        memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE)
    except (OSError, OverflowError):
        raise MemoryError(OUT_OF_MEMORY) from None
    with contextlib.suppress(AttributeError, OSError):  # a system that has none
        memory.madvise(mmap.MADV_HUGEPAGE)  # fewer addresses to translate while keys are read in order
    return ffi.from_buffer("unsigned char[]", memory)
