"""Each cache against a dense computation of the definition, and NativeCache beside KVCache through any history."""

import dataclasses

import numpy as np
import pytest
from cache_tools import CACHES, Inputs, configs, walk_layers
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tolerances import CACHE_ATTENTION

from dcp_ref.config import Config
from dcp_ref.runtime import native
from dcp_ref.runtime.cache import KVCache

CONFIG = Config(vocab_size=1, n_positions=9, n_embd=4, n_layer=2, n_head=2, int_n_embd=4)
SEEDS = st.integers(0, 2**32 - 1)


def dense(config, inputs):
    """One sequence by the formulas, in float64: scores j < i, live tokens [L, T, T], attention [L, T, C]."""
    L, T, C = inputs.q.shape
    q, k, v, q_int, k_int = (x.astype(np.float64) for x in (inputs.q, inputs.k, inputs.v, inputs.q_int, inputs.k_int))
    causal, below = np.tri(T, dtype=bool), np.tri(T, k=-1, dtype=bool)  # j <= i, j < i
    scores, live, out = np.zeros((L, T, T)), np.zeros((L, T, T), bool), np.zeros((L, T, C))
    for layer in range(L):
        keep = np.ones((T, T), bool)
        if config.int_n_embd is not None:
            scores[layer] = q_int[layer] @ k_int[layer].T / np.sqrt(config.int_n_embd) + inputs.beta[layer]
            keep = (scores[layer] > 0) | ~below
        live[layer] = np.logical_and.accumulate(keep, axis=0) & causal
        if config.propagate_in_depth and layer > 0:
            live[layer] &= live[layer - 1]
        for h in np.split(np.arange(C), config.n_head):
            logits = np.where(live[layer], q[layer][:, h] @ k[layer][:, h].T * config.attention_scale(layer), -np.inf)
            weights = np.exp(logits - logits.max(axis=1, keepdims=True))
            out[layer][:, h] = weights / weights.sum(axis=1, keepdims=True) @ v[layer][:, h]
    return scores[:, below], live, out


def check_against_dense(cache, inputs, chunks, live, out):
    sequence, start = cache.new_sequence(), 0
    for count in chunks:
        results = walk_layers(cache, [sequence], [start], [count], inputs, start)
        start += count
        for layer, (got, dropped) in enumerate(results):
            np.testing.assert_allclose(got, out[layer, start - count:start], **CACHE_ATTENTION)
            expected = [(row, j) for row, i in enumerate(range(start - count, start)) if i > 0
                        for j in np.flatnonzero(live[layer, i - 1] & ~live[layer, i])]
            assert [tuple(pair) for pair in dropped] == expected
            positions = np.flatnonzero(live[layer, start - 1])
            np.testing.assert_array_equal(cache.live_positions(sequence, layer), positions)


@pytest.mark.parametrize("make", CACHES)
@given(config=configs(), chunks=st.lists(st.integers(1, 5), min_size=1, max_size=12), page_slots=st.integers(1, 5),
       integers=st.booleans(), seed=SEEDS)
def test_equals_the_dense_definition(make, config, chunks, page_slots, integers, seed):
    assume(sum(chunks) <= config.n_positions)
    inputs = Inputs(config, sum(chunks), np.random.default_rng(seed), integers)
    scores, live, out = dense(config, inputs)
    assume(integers or config.int_n_embd is None or np.abs(scores).min(initial=1) > 1e-4)
    check_against_dense(make(config, page_slots), inputs, chunks, live, out)


@pytest.mark.parametrize("make", CACHES)
def test_what_one_sequence_frees_another_takes(make):
    four_pages = 4 * KVCache(CONFIG, 2)._page_bytes()
    cache = make(CONFIG, 2, max_bytes=four_pages)
    assert [cache.new_sequence(), cache.new_sequence()] == [0, 1]
    inputs = Inputs(CONFIG, 4, np.random.default_rng(0))
    inputs.beta += 100  # nothing is dropped: 4 tokens are 2 pages in each of 2 layers
    walk_layers(cache, [0], [0], [4], inputs)
    full = cache.stats()
    assert full.bytes_owned == full.bytes_reserved == four_pages
    with pytest.raises(MemoryError):
        cache.reserve([1], [1])
    assert cache.stats() == full
    np.testing.assert_array_equal(cache.live_positions(0, 1), range(4))
    cache.release(0)
    assert cache.stats() == (0, 0, 0, full.bytes_reserved)
    walk_layers(cache, [1], [0], [4], inputs)
    assert cache.stats() == full


@pytest.mark.parametrize("make", CACHES)
def test_nan_and_infinite_scores(make):
    """A NaN drops, +inf keeps, -inf drops."""
    cache = make(CONFIG)
    cache.reserve([cache.new_sequence()], [4])
    q_int, k_int = np.zeros((2, 4, 4), np.float32)
    q_int[:, 0], k_int[:3, 0] = 1, [np.nan, np.inf, -np.inf]
    with np.errstate(invalid="ignore"):
        rows = {name: np.zeros((4, 4), np.float32) for name in ("q", "k", "v")}
        out, dropped = cache.step(0, [0], [0], [4], **rows, q_int=q_int, k_int=k_int, beta=1.0)
    assert dropped.tolist() == [[1, 0], [3, 2]]
    assert np.isfinite(out).all()


class SideBySide(RuleBasedStateMachine):
    """KVCache and NativeCache, the same calls: several sequences, ragged blocks, releases, a bound on memory."""

    @initialize(config=configs(), page_slots=st.integers(1, 5), bound=st.none() | st.integers(1, 40))
    def start(self, config, page_slots, bound):
        page_bytes = KVCache(config, page_slots)._page_bytes()
        self.max_bytes = None if bound is None else bound * page_bytes
        self.numpy = KVCache(config, page_slots, self.max_bytes)
        self.native = native.NativeCache(config, page_slots, self.max_bytes)
        self.config, self.page_slots, self.lengths = config, page_slots, {}

    @rule()
    def new_sequence(self):
        handle = self.numpy.new_sequence()
        assert handle == self.native.new_sequence()
        self.lengths[handle] = 0

    @precondition(lambda self: self.lengths)
    @rule(data=st.data())
    def release(self, data):
        handle = data.draw(st.sampled_from(sorted(self.lengths)))
        for cache in (self.numpy, self.native):
            cache.release(handle)
            with pytest.raises(ValueError, match=f"sequence {handle} is unknown or was released"):
                cache.live_positions(handle, 0)
        del self.lengths[handle]

    @precondition(lambda self: self.lengths)
    @rule(data=st.data(), seed=SEEDS)
    def feed(self, data, seed):
        handles = data.draw(st.lists(st.sampled_from(sorted(self.lengths)), unique=True))
        starts = [self.lengths[handle] for handle in handles]
        counts = [data.draw(st.integers(0, min(4, self.config.n_positions - start))) for start in starts]
        inputs = Inputs(self.config, sum(counts), np.random.default_rng(seed))
        try:
            expected = walk_layers(self.numpy, handles, starts, counts, inputs)
        except MemoryError:
            with pytest.raises(MemoryError):
                self.native.reserve(handles, counts)
            return
        for handle, count in zip(handles, counts, strict=True):
            self.lengths[handle] += count
        actual = walk_layers(self.native, handles, starts, counts, inputs)
        for (out, dropped), (native_out, native_dropped) in zip(expected, actual, strict=True):
            np.testing.assert_array_equal(native_dropped, dropped)
            np.testing.assert_allclose(native_out, out, **CACHE_ATTENTION)

    @invariant()
    def same_tokens(self):
        for handle in self.lengths:
            for layer in range(self.config.n_layer):
                positions = self.numpy.live_positions(handle, layer)
                np.testing.assert_array_equal(self.native.live_positions(handle, layer), positions)
                assert self.native.slot_table(handle, layer).size < len(positions) + self.page_slots

    @invariant()
    def same_memory(self):
        stats = self.native.stats()
        assert stats == self.numpy.stats()
        assert stats.bytes_owned <= stats.bytes_reserved <= (self.max_bytes or stats.bytes_reserved)

    @invariant()
    def dead_slots_do_not_matter(self):
        self.native.poison()


if native.available():
    TestSideBySide = SideBySide.TestCase


@pytest.mark.parametrize("make", CACHES)
def test_a_layer_without_scores_of_its_own_inherits_drops(make):
    cache = make(dataclasses.replace(CONFIG, int_n_embd=None, propagate_in_depth=True), 2)
    sequence = cache.new_sequence()
    cache.reserve([sequence], [4])
    row = np.ones((4, 4), np.float32)
    inherited = np.array([[2, 0], [3, 1]], np.int32)
    _, dropped = cache.step(0, [sequence], [0], [4], row, row, row, inherited=inherited)
    assert dropped.tolist() == inherited.tolist()
    assert cache.live_positions(sequence, 0).tolist() == [2, 3]
