"""slots.c against a trivial table: a set of live slots, and pages that are numbers."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dcp_ref.runtime.native import available, ffi, lib

if not available():
    pytest.skip("the C extension is not built", allow_module_level=True)

LIST_PAGES, PAGE_BYTES = 12, 4096


class Slots(RuleBasedStateMachine):
    """One list of pages and its pool, beside a set of live slots and sets of addresses."""

    @initialize(page_slots=st.sampled_from([1, 2, 3, 31, 32]), chunk_pages=st.integers(1, 5))
    def start(self, page_slots, chunk_pages):
        self.page_slots, self.chunk_pages = page_slots, chunk_pages
        self.live, self.owned, self.detached, self.spare = set(), [], [], set()
        self.pool = ffi.new("dcp_pool *", {
            "page_slots": page_slots, "page_bytes": PAGE_BYTES, "max_pages": LIST_PAGES, "chunk_pages": chunk_pages})
        self.bitmap, self.pages = ffi.new("uint32_t[]", LIST_PAGES), ffi.new("unsigned char *[]", LIST_PAGES)
        self.slots = ffi.new("dcp_slots *", {"bitmap": self.bitmap, "page": self.pages})

    @precondition(lambda self: len(self.live) < LIST_PAGES * self.page_slots)
    @rule(n=st.integers(1, 80))
    def take(self, n):
        for _ in range(min(n, LIST_PAGES * self.page_slots - len(self.live))):
            if len(self.live) == len(self.owned) * self.page_slots:
                if lib.dcp_pool_grow(self.pool, 1) != lib.DCP_OK:
                    assert len(self.owned) + len(self.detached) == LIST_PAGES
                    return
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
        assert self.slots.page[self.slots.pages] == page
        self.live = {slot for slot in self.live if slot < first}
        self.detached.append(page)

    @precondition(lambda self: self.detached)
    @rule()
    def free_a_detached_page(self):
        page = self.detached.pop()
        lib.dcp_page_free(self.pool, page)
        assert self.free()[-1] == page

    @rule(extra=st.integers(0, 3))
    def grow(self, extra):
        n_free, before = self.pool.n_free + extra, self.pool.pages
        fits = before + extra <= LIST_PAGES
        assert lib.dcp_pool_grow(self.pool, n_free) == (lib.DCP_OK if fits else lib.DCP_ENOMEM)
        assert self.pool.pages == before + (extra if fits else 0)

    @rule()
    def trim(self):
        """What was free is spare, reads as zeros, and is taken again before anything more is mapped."""
        free = self.free()
        for page in free:
            ffi.buffer(page, PAGE_BYTES)[:] = b"\xff" * PAGE_BYTES
        lib.dcp_pool_trim(self.pool)
        assert self.pool.n_free == 0
        assert set(free) <= {self.pool.idle[i] for i in range(self.pool.n_spare)}
        assert all(ffi.buffer(page, PAGE_BYTES)[:] == bytes(PAGE_BYTES) for page in free)

    @invariant()
    def equal(self):
        slots, pool, n = self.slots, self.pool, self.page_slots
        assert slots.live == len(self.live)
        assert [slots.page[p] for p in range(slots.pages)] == self.owned
        assert {p * n + bit for p in range(slots.pages) for bit in range(32)
                if slots.bitmap[p] >> bit & 1} == self.live
        assert pool.pages == pool.n_free + slots.pages + len(self.detached) <= LIST_PAGES

    @invariant()
    def every_page_is_somewhere_once(self):
        pool = self.pool
        pages = self.owned + self.detached
        pages += [pool.idle[i] for i in range(pool.n_spare + pool.n_free)]
        assert len(pages) == len(set(pages)) == pool.mapped
        assert pool.mapped <= -(-LIST_PAGES // self.chunk_pages) * self.chunk_pages

    def free(self):
        return [self.pool.idle[self.pool.n_spare + i] for i in range(self.pool.n_free)]

    def teardown(self):
        if hasattr(self, "pool"):
            for page in self.owned + self.detached:
                lib.dcp_page_free(self.pool, page)
            lib.dcp_pool_clear(self.pool)


TestSlots = Slots.TestCase


def test_pages_for():
    assert [lib.dcp_pages_for(n, 3) for n in range(8)] == [0, 1, 1, 1, 2, 2, 2, 3]
    assert lib.dcp_pages_for(2**64 - 1, 32) == 2**59


def test_a_pool_that_the_system_refuses():
    """Nothing is lost by it: what was there is still free, and smaller wishes go on."""
    pool = ffi.new("dcp_pool *", {"page_slots": 1, "page_bytes": 2**62, "max_pages": 2, "chunk_pages": 1})
    assert lib.dcp_pool_grow(pool, 1) == lib.DCP_ENOMEM
    assert (pool.pages, pool.n_free, pool.n_spare, pool.mapped) == (0, 0, 0, 0)
    pool.page_bytes = PAGE_BYTES
    assert lib.dcp_pool_grow(pool, 1) == lib.DCP_OK
    pool.page_bytes, pool.chunk_pages = PAGE_BYTES, 2**50
    assert lib.dcp_pool_grow(pool, 2) == lib.DCP_ENOMEM and (pool.pages, pool.n_free) == (1, 1)
    pool.chunk_pages = 1
    assert lib.dcp_pool_grow(pool, 2) == lib.DCP_OK
    lib.dcp_pool_clear(pool)
