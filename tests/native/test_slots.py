"""slots.c against a trivial table: a set of live slots, and pages that are numbers."""

import mmap
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dcp_ref.native.extension import available, ffi, lib

if not available():
    pytest.skip("the C extension is not built", allow_module_level=True)

LIST_PAGES, AREA_BYTES = 12, [n * mmap.PAGESIZE for n in (1, 2, 1)]
PAGE_BYTES = sum(AREA_BYTES)


def new_pool(page_slots, most=10**6):
    return ffi.new("dcp_pool *", {"page_slots": page_slots, "area_bytes": AREA_BYTES, "most": most})


def addresses(page):
    """A page as what can be compared and put into a set."""
    return tuple(int(ffi.cast("uintptr_t", area)) for area in page.area)


def contents(page):
    """Buffers of its areas."""
    return [ffi.buffer(ffi.cast("char *", area), size) for area, size in zip(page, AREA_BYTES, strict=True)]


class Slots(RuleBasedStateMachine):
    """One list of pages and its pool, beside a set of live slots and sets of addresses."""

    @initialize(page_slots=st.sampled_from([1, 2, 3, 31, 32]), chunk_pages=st.integers(1, 5))
    def start(self, page_slots, chunk_pages):
        self.page_slots, self.chunk_pages = page_slots, chunk_pages
        self.live, self.owned, self.detached, self.memory = set(), [], [], []
        self.pool, self.lists = new_pool(page_slots), []
        self.bitmap, self.pages = ffi.new("uint32_t[]", LIST_PAGES), ffi.new("dcp_page[]", LIST_PAGES)
        self.slots = ffi.new("dcp_slots *", {"bitmap": self.bitmap, "page": self.pages})

    @precondition(lambda self: len(self.live) < LIST_PAGES * self.page_slots)
    @rule(n=st.integers(1, 80))
    def take(self, n):
        for _ in range(min(n, LIST_PAGES * self.page_slots - len(self.live))):
            if len(self.live) == len(self.owned) * self.page_slots:
                if len(self.owned) == LIST_PAGES:
                    return
                self.make_free(1)
                self.owned.append(self.free()[-1])
            slot = lib.dcp_slot_take(self.slots, self.pool)
            assert slot == min(set(range(len(self.live) + 1)) - self.live)
            self.live.add(slot)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def drop(self, data):
        self.live -= data.draw(st.sets(st.sampled_from(sorted(self.live))))
        bitmap = ffi.new("uint32_t[]", LIST_PAGES)
        for slot in self.live:
            bitmap[slot // self.page_slots] |= 1 << slot % self.page_slots
        lib.dcp_slots_keep(self.slots, bitmap)

    @precondition(lambda self: self.owned)
    @rule()
    def detach_last_page(self):
        first, page = (len(self.owned) - 1) * self.page_slots, self.owned.pop()
        self.slots.pages -= 1  # as compaction does
        bitmap = self.slots.bitmap[self.slots.pages]
        self.slots.live -= bitmap.bit_count()
        assert {first + bit for bit in range(32) if bitmap >> bit & 1} == {slot for slot in self.live if slot >= first}
        assert addresses(self.slots.page[self.slots.pages]) == page
        self.live = {slot for slot in self.live if slot < first}
        self.detached.append(page)

    @precondition(lambda self: self.detached)
    @rule()
    def free_a_detached_page(self):
        page = self.detached.pop()
        self.give(page)
        assert self.free()[-1] == page

    @precondition(lambda self: self.detached)
    @rule(more=st.integers(1, 3))
    def share_a_detached_page(self, more):
        """All owners but one give it up: it is not free yet."""
        free, owners = self.free(), self.owners(self.detached[-1])
        owners[0] += more
        for _ in range(more):
            self.give(self.detached[-1])
        assert self.free() == free and owners[0] == 1

    @rule(extra=st.integers(0, 3))
    def grow(self, extra):
        n_free, before, fits = self.pool.n_free + extra, self.pool.pages, extra <= self.pool.n_spare
        assert lib.dcp_pool_grow(self.pool, n_free) == (lib.DCP_OK if fits else lib.DCP_ENOROOM)
        assert self.pool.pages == before + (extra if fits else 0)

    @rule()
    def add(self):
        """Its pages are taken in the order of their addresses, area by area without a gap."""
        free, spare, n = self.free(), self.spare(), self.chunk_pages
        memory = np.zeros((n + 1) * PAGE_BYTES, np.uint8)
        start = -memory.ctypes.data % mmap.PAGESIZE
        self.memory.append(memory)
        room = self.pool.pages + self.pool.n_spare + n
        if room > self.pool.room:
            assert lib.dcp_pool_add(self.pool, ffi.from_buffer(memory[start:]), n) == lib.DCP_ENOROOM
            self.lists.append(ffi.new("dcp_page[]", room + 3))
            assert room == n or lib.dcp_pool_list(self.pool, self.lists[-1], room - n - 1) == lib.DCP_ENOROOM
            assert lib.dcp_pool_list(self.pool, self.lists[-1], room + 3) == lib.DCP_OK
        assert lib.dcp_pool_add(self.pool, ffi.from_buffer(memory[start:]), n) == lib.DCP_OK
        starts = np.cumsum([memory.ctypes.data + start, *(n * size for size in AREA_BYTES[:-1])]).tolist()
        new = [tuple(at + i * size for at, size in zip(starts, AREA_BYTES, strict=True)) for i in range(n)]
        assert self.spare() == new[::-1] + spare and self.free() == free

    @rule()
    def trim(self):
        """What was free is spare, and reads as zeros."""
        free = self.free()
        for page in free:
            for area in contents(page):
                area[:] = b"\xff" * len(area)
        lib.dcp_pool_trim(self.pool)
        assert self.pool.n_free == 0
        assert set(free) <= set(self.spare())
        assert all(area[:] == bytes(len(area)) for page in free for area in contents(page))

    @invariant()
    def equal(self):
        slots, pool, n = self.slots, self.pool, self.page_slots
        assert slots.live == len(self.live)
        assert [addresses(slots.page[p]) for p in range(slots.pages)] == self.owned
        assert {p * n + bit for p in range(slots.pages) for bit in range(32)
                if slots.bitmap[p] >> bit & 1} == self.live
        assert pool.pages == pool.n_free + slots.pages + len(self.detached)
        assert {self.owners(page)[0] for page in self.owned + self.detached} <= {1}

    @invariant()
    def every_page_is_somewhere_once(self):
        """And no two areas of memory overlap."""
        pool = self.pool
        pages = self.owned + self.detached + self.spare() + self.free()
        assert len(pages) == pool.pages + pool.n_spare == len(self.memory) * self.chunk_pages
        ends = sorted((at, at + size) for page in pages for at, size in zip(page, AREA_BYTES, strict=True))
        assert all(end <= start for (_, end), (start, _) in pairwise(ends))

    def free(self):
        return [addresses(self.pool.idle[self.pool.n_spare + i]) for i in range(self.pool.n_free)]

    def spare(self):
        return [addresses(self.pool.idle[i]) for i in range(self.pool.n_spare)]

    def make_free(self, pages):
        while lib.dcp_pool_grow(self.pool, pages) != lib.DCP_OK:
            self.add()

    def owners(self, page):
        return ffi.cast("uint32_t *", page[lib.DCP_REST])

    def give(self, page):
        lib.dcp_page_free(self.pool, {"area": [ffi.cast("unsigned char *", area) for area in page]})


TestSlots = Slots.TestCase


def test_pages_for():
    assert [lib.dcp_pages_for(n, 3) for n in range(8)] == [0, 1, 1, 1, 2, 2, 2, 3]
    assert lib.dcp_pages_for(2**64 - 1, 32) == 2**59


def test_a_pool_grows_to_its_bound_and_no_further():
    pool, memory, idle = new_pool(1, most=2), np.zeros(4 * PAGE_BYTES, np.uint8), ffi.new("dcp_page[]", 3)
    assert lib.dcp_pool_list(pool, idle, 3) == lib.DCP_OK
    assert lib.dcp_pool_add(pool, ffi.from_buffer(memory[-memory.ctypes.data % mmap.PAGESIZE :]), 3) == lib.DCP_OK
    assert lib.dcp_pool_grow(pool, 3) == lib.DCP_ENOROOM and pool.n_free == 0
    assert lib.dcp_pool_grow(pool, 2) == lib.DCP_OK
    lib.dcp_page_take(pool)
    assert lib.dcp_pool_grow(pool, 1) == lib.DCP_OK and lib.dcp_pool_grow(pool, 2) == lib.DCP_ENOROOM
    assert (pool.pages, pool.n_free, pool.n_spare) == (2, 1, 1)
