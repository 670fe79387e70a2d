"""The memory that the pages of a cache in C are in."""

import contextlib
import mmap
from typing import Any

from dcp_ref.runtime.block import check_bytes
from dcp_ref.runtime.native import ffi, lib

OUT_OF_MEMORY = "out of memory: release a sequence"
CHUNK_BYTES = 64 << 20  # the most that is asked for beyond the need: then nearly all of it is in huge pages


class Chunks:
    """Chunks of memory of the system's, each for many pages and as large as all before together, up to CHUNK_BYTES."""

    def __init__(self, pool: Any, max_bytes: int | None) -> None:
        self.pool, self.page_bytes, self.max_bytes = pool, sum(pool.piece_bytes), max_bytes
        self.memory: list[Any] = []  # which the pool's pages point into

    def make_free(self, pages: int) -> None:
        """See to it that so many pages are free. Raises CacheFull or MemoryError; nothing has changed then."""
        pool, size = self.pool, self.page_bytes
        check_bytes((pool.pages + max(pages - pool.n_free, 0)) * size, self.max_bytes)
        while lib.dcp_pool_grow(pool, pages) != lib.DCP_OK:
            more = max(pages - pool.n_free - pool.n_spare, min(pool.pages, CHUNK_BYTES // size))
            memory = _map(more * size)
            self.memory.append(memory)  # first: interrupted here, it is only of no use
            if lib.dcp_pool_add(pool, memory, more) != lib.DCP_OK:
                self.memory.remove(memory)
                raise MemoryError(OUT_OF_MEMORY)


def _map(size: int) -> Any:  # -> unsigned char *
    """So many zeros of the system's, which take memory when they are written first. Raises MemoryError."""
    try:
        memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE)
    except (OSError, OverflowError):
        raise MemoryError(OUT_OF_MEMORY) from None
    with contextlib.suppress(AttributeError, OSError):  # a system that has none
        memory.madvise(mmap.MADV_HUGEPAGE)  # fewer addresses to translate while keys are read in order
    return ffi.from_buffer("unsigned char[]", memory)
