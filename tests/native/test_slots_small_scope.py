"""slots.c alone, all of a small scope, beside a trivial table: takes, kept subsets, pages shared and given back, trims.

A table holds the pages of each list, each page with its live bits, and the free and the spare pages. Pages are numbers.
Tables that histories share are visited once, by a history with the fewest tokens. From each table every operation is
made: a take, every subset of the live slots kept, the last page given back, a trim, and the pages of one list shared by
an empty one. A page is idle when its last owner has given it back. The scope is one list up to 8 tokens, and two lists
that share a pool up to 4 together.
"""

import itertools
import mmap
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from dcp_ref.native.extension import available, ffi, lib

if not available():
    pytest.skip("the C extension is not built", allow_module_level=True)

AREA = mmap.PAGESIZE  # bytes; each of a page's three areas has as many
STATES = {(1, 8): (1013, 453, 412), (2, 4): (5634, 1924, 934)}  # (lists, tokens): tables, by slots in a page


class Table(NamedTuple):
    """Of each list its (page, live bits), ...; then the idle pages as the pool lists them: the last is taken first."""

    lists: tuple[tuple[tuple[int, int], ...], ...]
    spare: tuple[int, ...]
    free: tuple[int, ...]


class Slots:
    """The structs of C, which are set to a table, changed by a call, and read again."""

    def __init__(self, lists, tokens, page_slots):
        self.n, self.memory, self.tokens = page_slots, mmap.mmap(-1, 3 * AREA * tokens), tokens
        self.idle = ffi.new("dcp_page[]", tokens)
        self.pool = ffi.new("dcp_pool *", {"page_slots": page_slots, "area_bytes": [AREA] * 3, "most": tokens})
        assert lib.dcp_pool_list(self.pool, self.idle, tokens) == lib.DCP_OK
        assert lib.dcp_pool_add(self.pool, ffi.from_buffer(self.memory), tokens) == lib.DCP_OK
        self.pages = [ffi.new("dcp_page *", self.idle[tokens - 1 - i])[0] for i in range(tokens)]  # in their order
        self.number = {self.address(page): i for i, page in enumerate(self.pages)}
        self.lists = [ffi.new("dcp_slots *") for _ in range(lists)]
        self.kept = [(ffi.new("uint32_t[]", tokens), ffi.new("dcp_page[]", tokens)) for _ in range(lists)]
        for slots, (bitmap, page) in zip(self.lists, self.kept, strict=True):
            slots.bitmap, slots.page = bitmap, page

    @staticmethod
    def address(page):
        return tuple(int(ffi.cast("uintptr_t", area)) for area in page.area)

    def write(self, table):
        """What lies past the pages of a list is of no account: all ones."""
        for slots, pages in zip(self.lists, table.lists, strict=True):
            slots.pages, slots.live = len(pages), sum(live.bit_count() for _, live in pages)
            for p in range(self.tokens):
                slots.bitmap[p] = pages[p][1] if p < len(pages) else 2**32 - 1
                slots.page[p] = self.pages[pages[p][0] if p < len(pages) else 0]
        for i, page in enumerate((*table.spare, *table.free)):
            self.idle[i] = self.pages[page]
        self.pool.n_spare, self.pool.n_free = len(table.spare), len(table.free)
        self.pool.pages = self.tokens - len(table.spare)
        owners = self.owners(table)
        for i, page in enumerate(self.pages):
            lib.dcp_page_owners(page)[0] = owners.get(i, 7)  # of an idle page it is of no account

    @staticmethod
    def owners(table):
        return Counter(page for pages in table.lists for page, _ in pages)

    def share(self, i, pages):
        """As a fork does: list i, which is empty, gets the pages and bits of another."""
        slots = self.lists[i]
        for p, (page, live) in enumerate(pages):
            slots.page[p], slots.bitmap[p] = self.pages[page], live
            lib.dcp_page_owners(self.pages[page])[0] += 1
        slots.pages, slots.live = len(pages), sum(live.bit_count() for _, live in pages)

    def read(self):
        n_spare = self.pool.n_spare
        idle = [self.number[self.address(self.idle[i])] for i in range(n_spare + self.pool.n_free)]
        table = Table(tuple(tuple((self.number[self.address(s.page[p])], s.bitmap[p]) for p in range(s.pages))
                            for s in self.lists), tuple(idle[:n_spare]), tuple(idle[n_spare:]))
        for slots, pages in zip(self.lists, table.lists, strict=True):
            assert slots.live == sum(live.bit_count() for _, live in pages)
        assert self.pool.pages == self.tokens - n_spare
        assert all(lib.dcp_page_owners(self.pages[i])[0] == n for i, n in self.owners(table).items())
        return table


def changed(table, i, pages, **idle):
    return table._replace(lists=(*table.lists[:i], tuple(pages), *table.lists[i + 1 :]), **idle)


def taken(table, i, page_slots):
    """A take: the lowest free slot, or the first one of a free page, for which a spare one is made free if need be."""
    pages = table.lists[i]
    for p, (page, live) in enumerate(pages):
        for bit in range(page_slots):
            if not live >> bit & 1:
                more = (*pages[:p], (page, live | 1 << bit), *pages[p + 1 :])
                return changed(table, i, more), p * page_slots + bit
    spare, free = table.spare, table.free
    if not free:
        spare, free = spare[:-1], spare[-1:]
    return changed(table, i, (*pages, (free[-1], 1)), spare=spare, free=free[:-1]), len(pages) * page_slots


def take(c, table, i):
    expected, slot = taken(table, i, c.n)
    c.write(table)
    full = all(live == 2**c.n - 1 for _, live in table.lists[i])
    assert lib.dcp_pool_grow(c.pool, int(full)) == lib.DCP_OK
    assert lib.dcp_slot_take(c.lists[i], c.pool) == slot
    assert c.read() == expected
    return expected


def submasks(live):
    return [bits for bits in range(live + 1) if bits & ~live == 0]


def others(c, table):
    """The tables after each operation that takes no token."""
    for i, pages in enumerate(table.lists):
        for kept in itertools.product(*(submasks(live) for _, live in pages)):
            c.write(table)
            lib.dcp_slots_keep(c.lists[i], ffi.new("uint32_t[]", kept or [0]))
            yield changed(table, i, ((page, live) for (page, _), live in zip(pages, kept, strict=True)))
        if pages:
            c.write(table)
            c.lists[i].pages -= 1  # as compaction and release do
            c.lists[i].live -= pages[-1][1].bit_count()
            lib.dcp_page_free(c.pool, c.lists[i].page[len(pages) - 1])
            last = pages[-1][0]
            others_have_it = any(last == page for n, more in enumerate(table.lists) if n != i for page, _ in more)
            yield changed(table, i, pages[:-1], free=table.free if others_have_it else (*table.free, last))
        for source in table.lists if not pages else ():
            c.write(table)
            c.share(i, source)
            yield changed(table, i, source)
    c.write(table)
    lib.dcp_pool_trim(c.pool)
    yield table._replace(spare=(*table.spare, *table.free), free=())


@pytest.mark.parametrize("page_slots", (1, 2, 3))
@pytest.mark.parametrize("scope", STATES)
def test_all_histories(scope, page_slots):
    lists, tokens = scope
    c = Slots(lists, tokens, page_slots)
    found = {c.read()}
    layer = list(found)  # the new tables of histories with this number of tokens
    for n in range(tokens + 1):
        for table in layer:  # it grows meanwhile
            for after in others(c, table):
                assert c.read() == after
                if after not in found:
                    found.add(after)
                    layer.append(after)
        if n < tokens:
            new = {take(c, table, i) for table in layer for i in range(lists)} - found
            found |= new
            layer = sorted(new)
    assert len(found) == STATES[scope][page_slots - 1]


def test_a_count_by_hand():
    """One list, one slot in a page: p pages of any live bits; of 8 - p others the first few were taken once."""
    assert STATES[1, 8][0] == sum(2**p * (9 - p) for p in range(9))


def test_the_readme_counts_them():
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    first, second, third = STATES[1, 8]
    assert f"{first:,}, {second:,} and {third:,}" in text
