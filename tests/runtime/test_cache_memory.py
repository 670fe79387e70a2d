"""What caches own and reserve: pages that go from one sequence to another, forks, bounds."""

import mmap

import numpy as np
import pytest
from cache_tools import CACHES, Inputs, any_policies, configs, page_bytes, walk_layers, with_pages
from hypothesis import assume, given
from hypothesis import strategies as st

from dcp_ref import native
from dcp_ref.config import Config
from dcp_ref.native.cache import NativeCache
from dcp_ref.policies import dense, heavy_hitters, learned, window
from dcp_ref.runtime.cache import KVCache
from dcp_ref.runtime.checks import CacheFull
from dcp_ref.runtime.precision import STORAGES

CONFIG = Config(vocab_size=1, n_positions=9, n_embd=4, n_layer=2, n_head=2, int_n_embd=4)
each_cache = pytest.mark.parametrize("make", CACHES)


def kept(rows):
    """Inputs of which nothing is dropped."""
    inputs = Inputs(CONFIG, rows, np.random.default_rng(0))
    inputs.beta += 100
    return inputs


native_cache = pytest.mark.skipif(not native.available(), reason="the C extension is not built")
TOKEN_BYTES = 8 + 3 * 4 * 4 + 4  # position, k, v and k_int, attention: of one token in one layer of a KVCache


@native_cache
def test_what_one_sequence_frees_another_takes():
    four_pages = 4 * page_bytes(CONFIG, 2, "float32", learned)
    cache = NativeCache(CONFIG, 2, max_bytes=four_pages)
    assert [cache.new_sequence(), cache.new_sequence()] == [0, 1]
    inputs = Inputs(CONFIG, 4, np.random.default_rng(0))
    inputs.beta += 100  # nothing is dropped: 4 tokens are 2 pages in each of 2 layers
    walk_layers(cache, [0], [4], inputs)
    full = cache.stats()
    assert full.bytes_owned == full.bytes_reserved == four_pages
    with pytest.raises(MemoryError):
        cache.reserve([1], [1])
    assert cache.stats() == full
    np.testing.assert_array_equal(cache.live_positions(0, 1), range(4))
    cache.release(0)
    assert cache.stats()[:4] == (0, 0, 0, full.bytes_reserved)
    walk_layers(cache, [1], [4], inputs)
    assert cache.stats() == full


@each_cache
def test_a_full_cache_says_what_would_help(make):
    """A page of two slots is what NativeCache counts in, a token what KVCache does."""
    unit, pages = (page_bytes(CONFIG, 2, "float32", learned), 2) if make is not KVCache else (TOKEN_BYTES, 4)
    cache = with_pages(make, CONFIG, 2, max_bytes=2 * (pages + 1) * unit - 1)
    sequence = cache.new_sequence()
    walk_layers(cache, [sequence], [4], kept(4))
    before = cache.stats()
    assert before.bytes_owned == 2 * pages * unit
    words = f"the cache needs {2 * (pages + 1) * unit} bytes, and its bound is {2 * (pages + 1) * unit - 1}: release a"
    for too_much in (lambda: cache.reserve([sequence], [1]), lambda: cache.reserve([cache.new_sequence()], [1])):
        with pytest.raises(CacheFull, match=words):
            too_much()
    assert cache.stats()[:4] == before[:4] and issubclass(CacheFull, MemoryError)
    child = cache.fork(sequence)  # it shares all: each page, or token, is there once
    assert cache.stats()[2:4] == before[2:4] and cache.stats().bytes_logical == 2 * before.bytes_owned
    cache.release(sequence)
    cache.release(child)
    cache.reserve([cache.new_sequence()], [4])


@each_cache
@given(config=configs(), page_slots=st.integers(1, 5), policy=any_policies(), kv=st.sampled_from(STORAGES),
       counts=st.tuples(*[st.integers(0, 8)] * 3), seed=st.integers(0, 2**32 - 1))
def test_a_fork_and_its_parent_go_their_own_ways(make, config, page_slots, policy, kv, counts, seed):
    """Each as a sequence that was never forked, whichever goes on first."""
    assume(config.int_n_embd is not None or not policy.learned)
    rng = np.random.default_rng(seed)
    shared, *tails = (Inputs(config, count, rng) for count in counts)
    caches = [with_pages(make, config, page_slots, kv=kv, policy=policy) for _ in range(3)]
    handles = [cache.new_sequence() for cache in caches]
    for cache, handle in zip(caches, handles, strict=True):
        walk_layers(cache, [handle], counts[:1], shared, policy=policy)
    cache, parent = caches[0], handles[0]
    before = cache.stats()
    child = cache.fork(parent)
    assert child not in handles[:1] and cache.stats()[:2] == tuple(2 * n for n in before[:2])
    assert cache.stats()[2:4] == before[2:4] and cache.stats().bytes_logical == 2 * before.bytes_logical
    for handle, alone, tail, count in zip((parent, child), caches[1:], tails, counts[1:], strict=True):
        got, expected = (walk_layers(c, [h], [count], tail, policy=policy)
                         for c, h in ((cache, handle), (alone, 0)))
        for (out, dropped), (out_alone, dropped_alone) in zip(got, expected, strict=True):
            np.testing.assert_array_equal(out, out_alone)
            np.testing.assert_array_equal(dropped, dropped_alone)
    for layer in range(config.n_layer):
        for handle, alone in zip((parent, child), caches[1:], strict=True):
            np.testing.assert_array_equal(cache.live_positions(handle, layer), alone.live_positions(0, layer))
    cache.release(parent)
    assert cache.stats()[:3] == caches[2].stats()[:3]


@each_cache
def test_a_fork_of_what_is_not_there(make):
    cache = make(CONFIG)
    cache.release(cache.new_sequence())
    for handle in (0, 1, None):
        with pytest.raises(ValueError, match=f"sequence {handle!r} is unknown or was released"):
            cache.fork(handle)
    assert cache.fork(cache.new_sequence()) > 1


@native_cache
def test_trim_gives_free_pages_back():
    cache = NativeCache(CONFIG, 2)
    kept_one, released = cache.new_sequence(), cache.new_sequence()
    walk_layers(cache, [kept_one, released], [3, 4], kept(7))
    batch = cache.reserve([kept_one], [2])
    cache.release(released)
    before = cache.stats()
    assert before.bytes_reserved > before.bytes_owned and before.bytes_scratch > 0
    cache.trim()
    assert cache.stats()[:5] == (*before[:3], before.bytes_owned, 0)
    with pytest.raises(RuntimeError, match="the batch is no longer valid"):
        cache.step(0, batch, *[np.ones((2, 4), np.float32)] * 5)
    assert cache.live_positions(kept_one, 0).tolist() == [0, 1, 2]
    cache.release(kept_one)
    cache.trim()
    assert cache.stats()[:6] == (0, 0, 0, 0, 0, 0)


GPT2 = Config(int_n_embd=64)  # H = 12, D = 64


@native_cache
@pytest.mark.parametrize(("config", "slots", "kv", "policy", "areas"), [
    (GPT2, 32, "float32", learned, [12 * 64 * 32 * 4, 12 * 64 * 32 * 4, 64 * 128 + 128]),
    (GPT2, 32, "float16", learned, [12 * 64 * 32 * 2, 12 * 64 * 32 * 2, 64 * 128 + 128]),
    (GPT2, 32, "int8", window(3), [12 * 64 * 32, 12 * 64 * 32, 12 * 128 + 12 * 128 + 128]),
    (GPT2, 32, "float32", heavy_hitters(0, 3), [12 * 64 * 32 * 4, 12 * 64 * 32 * 4, 12 * 128 + 128]),
    (GPT2, 1, "float32", dense, [12 * 64 * 32 * 4, 12 * 64 * 4, 128]),
    (Config(n_embd=33, n_head=1), 3, "int8", dense, [33 * 32 + 32, 2 * 3 * 32, 128 + 128 + 128]),
])
def test_page_bytes(config, slots, kv, policy, areas):
    expected = sum(-(-area // mmap.PAGESIZE) * mmap.PAGESIZE for area in areas)
    cache = NativeCache(config, slots, kv=kv, policy=policy)
    cache.reserve([cache.new_sequence()], [1])
    assert cache.stats().bytes_reserved == config.n_layer * expected


@each_cache
@pytest.mark.parametrize(("wrong", "error", "message"), [
    ({"kv": "int4"}, ValueError, "kv must be one of float32, float16, int8"),
    ({"policy": "window:3"}, TypeError, "policy must be None or a Policy"),
    ({"policy": learned, "config": Config()}, ValueError, "no interaction weights"),
])
def test_what_a_cache_is_made_with_is_checked(make, wrong, error, message):
    with pytest.raises(error, match=message):
        make(**{"config": CONFIG, **wrong})
