"""slots.c against a trivial table: a set of live slots, and pages that are numbers."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dcp_ref.runtime.native import available, ffi, lib

if not available():
    pytest.skip("the C extension is not built", allow_module_level=True)

LIST_PAGES = 12


class Slots(RuleBasedStateMachine):
    """One list of pages and its pool, beside a set of live slots."""

    @initialize(page_slots=st.sampled_from([1, 2, 3, 31, 63, 64]))
    def start(self, page_slots):
        self.page_slots, self.live, self.owned = page_slots, set(), []
        self.pool = ffi.new("dcp_pool *", {"page_slots": page_slots, "page_bytes": 64, "max_pages": LIST_PAGES})
        self.bitmap, self.pages = ffi.new("uint64_t[]", LIST_PAGES), ffi.new("float *[]", LIST_PAGES)
        self.slots = ffi.new("dcp_slots *", {"bitmap": self.bitmap, "page": self.pages})

    @precondition(lambda self: len(self.live) < LIST_PAGES * self.page_slots)
    @rule(n=st.integers(1, 80))
    def take(self, n):
        for _ in range(min(n, LIST_PAGES * self.page_slots - len(self.live))):
            if len(self.live) == len(self.owned) * self.page_slots:
                assert lib.dcp_pool_grow(self.pool, 1) == lib.DCP_OK
                self.owned.append(self.pool.free_page[self.pool.n_free - 1])
            slot = lib.dcp_slot_take(self.slots, self.pool)
            assert slot == min(set(range(len(self.live) + 1)) - self.live)
            self.live.add(slot)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def drop(self, data):
        for slot in data.draw(st.sets(st.sampled_from(sorted(self.live)))):
            lib.dcp_slot_drop(self.slots, slot, self.page_slots)
            self.live.remove(slot)

    @precondition(lambda self: self.owned)
    @rule()
    def release_last_page(self):
        first, page = (len(self.owned) - 1) * self.page_slots, self.owned.pop()
        bitmap = lib.dcp_page_release(self.slots, self.pool)
        assert {first + bit for bit in range(64) if bitmap >> bit & 1} == {slot for slot in self.live if slot >= first}
        assert self.pool.free_page[self.pool.n_free - 1] == page
        self.live = {slot for slot in self.live if slot < first}

    @rule(extra=st.integers(0, 3))
    def grow(self, extra):
        n_free = self.pool.n_free + extra
        fits = len(self.owned) + n_free <= LIST_PAGES
        before = self.pool.pages
        assert lib.dcp_pool_grow(self.pool, n_free) == (lib.DCP_OK if fits else lib.DCP_ENOMEM)
        assert self.pool.pages == before + (extra if fits else 0)

    @invariant()
    def equal(self):
        slots, n = self.slots, self.page_slots
        assert slots.live == len(self.live)
        assert [slots.page[p] for p in range(slots.pages)] == self.owned
        assert {p * n + bit for p in range(slots.pages) for bit in range(64)
                if slots.bitmap[p] >> bit & 1} == self.live
        assert self.pool.pages == self.pool.n_free + slots.pages

    def teardown(self):
        while self.slots.pages:
            lib.dcp_page_release(self.slots, self.pool)
        lib.dcp_pool_clear(self.pool)


TestSlots = Slots.TestCase


def test_pages_for():
    assert [lib.dcp_pages_for(n, 3) for n in range(8)] == [0, 1, 1, 1, 2, 2, 2, 3]
    assert lib.dcp_pages_for(2**64 - 1, 64) == 2**58
