"""What the tests of both caches share: random inputs of a few layers, and how to feed them."""

from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from models import DELAYS

from dcp_ref import native, policies
from dcp_ref.config import Config
from dcp_ref.native.cache import NativeCache
from dcp_ref.native.extension import ffi, lib
from dcp_ref.policies import Policy, budget, heavy_hitters, sinks, strided, window
from dcp_ref.runtime.cache import KVCache

CACHES = [KVCache, NativeCache] if native.available() else [KVCache]
FORMS = ("dense", "learned", "window", "strided", "sinks", "heavy_hitters", "budget")


def with_pages(make, config, page_slots, **options):
    """A cache of either kind: KVCache has no pages."""
    return make(config, **options, **({} if make is KVCache else {"page_slots": page_slots}))


@st.composite
def configs(draw):
    return Config(
        vocab_size=1, n_positions=24, n_embd=4, n_head=2, n_layer=draw(st.integers(1, 3)),
        int_n_embd=draw(st.sampled_from([1, 4, 16, None])), propagate_in_depth=draw(st.booleans()),
        int_delay=draw(DELAYS), scale_attn_by_inverse_layer_idx=draw(st.booleans()))


@st.composite
def thresholds(draw, config, policy=None):
    """Integers, which exact scores can equal, where anything is learned."""
    learned = config.int_n_embd is not None and (policy is None or policy.learned)
    return float(draw(st.integers(-3, 5))) if learned else 0.0


@st.composite
def any_policies(draw, forms=(*FORMS, "heavy_hitters", "budget", "mixed")):
    """One of the forms that a command line takes, or all of them at once, with small numbers."""
    small, w = st.integers(0, 5), draw(st.integers(1, 6))
    return {"dense": lambda: policies.dense, "learned": lambda: policies.learned, "window": lambda: window(w),
            "strided": lambda: strided(w, draw(small)), "sinks": lambda: sinks(draw(small), w),
            "heavy_hitters": lambda: heavy_hitters(draw(small), w), "budget": lambda: budget(w),
            "mixed": lambda: Policy("mixed", draw(st.booleans()), w, draw(small), draw(small), draw(st.none() | small)),
            }[draw(st.sampled_from(forms))]()


class Inputs:
    """q, k, v [L, T, C]; q_int, k_int [L, T, r], beta [L], small integers unless told: then every score is exact.

    With `sharp` queries and keys each head gives weight 1 to one token and 0 to the others: then all sums of them are
    exact too.
    """

    def __init__(self, config, rows, rng, integers=True, sharp=False):
        L, r = config.n_layer, config.int_n_embd or 0
        self.q, self.k, self.v = rng.normal(size=(3, L, rows, config.n_embd)).astype(np.float32)
        self.q_int, self.k_int = rng.normal(size=(2, L, rows, r)).astype(np.float32)
        self.beta = rng.uniform(0, 3, L)
        if integers:
            self.q_int, self.k_int = rng.integers(-2, 3, size=(2, L, rows, r)).astype(np.float32)
            self.beta = rng.integers(0, 6, L).astype(float)

        if sharp:
            qk = np.zeros((2, L, rows, config.n_head, config.head_dim), np.float32)
            qk[0, ..., 0] = rng.choice([-8, 8], (L, rows, config.n_head))
            qk[1, ..., 0] = 2048 * rng.random((L, rows, config.n_head)).argsort(axis=1)  # no two alike
            self.q, self.k = qk.reshape(2, L, rows, config.n_embd)

    def rows(self, config, policy, layer, start, stop):
        arrays = [x[layer, start:stop] for x in (self.q, self.k, self.v, self.q_int, self.k_int)]
        learned = policies.for_model(config, policy).learned
        return [*arrays[:3], *(arrays[3:] if learned else (None, None)), self.beta[layer]]


def areas(cache, page):
    """The bytes of a NativeCache's page, as they are now: its keys, the rest, its values."""
    return [np.frombuffer(ffi.buffer(area, size), np.uint8)
            for area, size in zip(page.area, cache.c.pool.area_bytes, strict=True)]


class Owned(NamedTuple):
    """A page of a NativeCache: its areas, the slots that are live for any of its owners, and these."""

    page: Any
    live: int
    owners: list[tuple[int, int]]  # (handle, layer)


def owned_pages(cache):
    """The pages that sequences own, each once, by address."""
    found = {}
    for handle, sequence in cache._sequences._sequences.items():
        for layer in range(cache.c.shape.layers):
            slots = sequence.c.layer[layer]
            for p in range(slots.pages):
                page = slots.page[p]
                before = found.get(page.area[0], Owned(page, 0, []))
                found[page.area[0]] = Owned(page, before.live | slots.bitmap[p], [*before.owners, (handle, layer)])
    return list(found.values())


def poison(cache):
    """Fill every slot of a NativeCache that is not live with NaN, or the like. No result may change."""
    c = cache.c
    pages = [(c.pool.idle[c.pool.n_spare + i], 0) for i in range(c.pool.n_free)]
    for page, bitmap in [*pages, *((page, live) for page, live, _ in owned_pages(cache))]:
        dead = [slot for slot in range(cache.page_slots) if not bitmap >> slot & 1]
        keys, rest, values = areas(cache, page)
        for lanes in (keys, rest[lib.DCP_LANES * 4 :]):  # the first row of the rest counts the owners
            lanes.reshape(-1, lib.DCP_LANES, 4)[:, dead] = 255
        shared = 2**c.shape.kv  # rows in one of words
        panels, groups = c.shape.heads * c.v_panels, -(-cache.page_slots // shared)
        values = values[: panels * groups * lib.DCP_LANES * 4].reshape(panels, groups, lib.DCP_LANES, shared, -1)
        for slot in dead:  # bytes of NaN, of a huge half, of int8 -1
            values[:, slot // shared, :, slot % shared] = 255


class Ledger:
    """What a NativeCache owns and reserves, in pages: from the live tokens of a KVCache beside it, and who shares what.

    `names` are the NativeCache's handles of the KVCache's sequences.
    """

    def __init__(self, cache, native, names, page_slots, max_bytes, page):
        self.cache, self.native, self.names = cache, native, names
        self.page_slots, self.max_bytes, self.page = page_slots, max_bytes, page
        self.pages = 0  # owned and free

    def logical(self, handles=None, more=0):
        """Pages of these sequences, or all, as if none were shared, each with this number of tokens more."""
        layers = range(self.cache.config.n_layer)
        handles = list(self.names) if handles is None else handles
        return sum(-(-(len(self.cache.live_positions(h, layer)) + more) // self.page_slots)
                   for h in handles for layer in layers)

    def owned(self):
        """Pages that are owned, each once."""
        return len(owned_pages(self.native))

    def reserve(self, more):
        """The bytes that are too many, or None and this number of pages more can be owned."""
        needed = max(self.owned() + more, self.pages)
        if self.max_bytes is not None and needed * self.page > self.max_bytes:
            return needed * self.page
        self.pages = needed
        return None

    def more(self, handles, counts):
        """Pages that these counts of tokens could need."""
        grown = sum(self.logical([h], count) - self.logical([h]) for h, count in zip(handles, counts, strict=True))
        return grown + sum(self.copied(h, count) for h, count in zip(handles, counts, strict=True) if count)

    def copied(self, handle, count):
        """Pages with other owners that this number of tokens could write to."""
        name, policy, copies = self.names[handle], self.cache.policy, 0
        shared = {page.area[0] for page, _, owners in owned_pages(self.native) if len(owners) > 1}
        for layer in range(self.cache.config.n_layer):
            slots, table = self.native._sequences[name].c.layer[layer], self.native.slot_table(name, layer)
            free = np.flatnonzero((table < 0).ravel())[:count] // self.page_slots  # where they go if nothing is dropped
            pages = set(free.tolist())
            if policy.learned or policy.window or self.cache.config.propagate_in_depth:
                pages = range(slots.pages)
            copies += sum(slots.page[p].area[0] in shared for p in pages)
        return copies


def page_bytes(config, page_slots=32, kv="float32", policy=None):
    """The size of a NativeCache's page."""
    return NativeCache(config, page_slots, kv=kv, policy=policy)._pages.page_bytes


def walk_layers(cache, sequences, counts, inputs, first=0, policy=None, pinned=None):
    """Feed rows first, first + 1, ... of the inputs to every layer; returns the (out, dropped) of each."""
    config, inherited, results = cache.config, None, []
    batch = cache.reserve(sequences, counts, pinned)
    for layer in range(config.n_layer):
        arguments = inputs.rows(config, policy, layer, first, first + sum(counts))
        results.append(cache.step(layer, batch, *arguments, inherited))
        inherited = results[-1][1] if config.propagate_in_depth else None
    return results
