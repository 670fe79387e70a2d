"""Each cache against a dense computation of the definition, and NativeCache beside KVCache through any history."""

import dataclasses

import numpy as np
import pytest
from cache_tools import (
    CACHES,
    Inputs,
    Ledger,
    any_policies,
    configs,
    owned_pages,
    page_bytes,
    poison,
    thresholds,
    walk_layers,
    with_pages,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tolerances import CACHE_ATTENTION, SCORE_MARGIN

from dcp_ref import native, policies
from dcp_ref.config import Config
from dcp_ref.native.cache import NativeCache
from dcp_ref.native.extension import ffi, lib
from dcp_ref.runtime.cache import KVCache
from dcp_ref.runtime.checks import CacheFull
from dcp_ref.runtime.precision import STORAGES, stored

CONFIG = Config(vocab_size=1, n_positions=9, n_embd=4, n_layer=2, n_head=2, int_n_embd=4)
SEEDS = st.integers(0, 2**32 - 1)
CHUNKS = st.lists(st.integers(1, 5), min_size=1, max_size=12).filter(lambda chunks: sum(chunks) <= 24)


def dense(config, inputs, policy=None, kv="float32", threshold=0.0):
    """One sequence by the formulas, in float64: how close any decision was, live tokens [L, T, T], attention [L, T, C].

    Keys and values are those that are read back after storing.
    """
    policy = policies.for_model(config, policy)
    L, T, C = inputs.q.shape
    margin, live, out = np.inf, np.zeros((L, T, T), bool), np.zeros((L, T, C))
    for layer in range(L):
        q, q_int, k_int = (x[layer].astype(float) for x in (inputs.q, inputs.q_int, inputs.k_int))
        k, v = (stored(x[layer], kv, config.n_head).astype(float) for x in (inputs.k, inputs.v))
        attention = np.zeros(T)
        for i in range(T):
            j = np.flatnonzero(live[layer, i - 1, :i])  # none when i = 0
            if config.propagate_in_depth and layer > 0:
                j = j[live[layer - 1, i, j]]
            if policy.learned:
                s = k_int[j] @ q_int[i] / np.sqrt(config.int_n_embd) + inputs.beta[layer]
                judged = i - j > config.int_delay
                margin = min(margin, np.abs(s[judged] - threshold).min(initial=np.inf))
                left = (s > threshold) | ~judged
                j, s = j[left], s[left]
                if policy.budget:
                    ranked = [n for n in range(len(j)) if i - j[n] > config.int_delay]
                    ranked.sort(key=lambda n: (s[n], j[n]))
                    over = ranked[: max(len(ranked) - policy.budget, 0)]
                    if over:
                        margin = min(margin, s[ranked[len(over)]] - s[over[-1]])
                    j = np.delete(j, over)
            candidates = [x for x in j if not stays_by_position(policy, i, x)]
            candidates.sort(key=lambda x: (attention[x], x))
            gone = candidates[: max(len(candidates) - (policy.heavy or 0), 0)]
            if policy.heavy and gone:
                margin = min(margin, attention[candidates[len(gone)]] - attention[gone[-1]])
            j = np.append(np.setdiff1d(j, gone), i)
            live[layer, i, j] = True
            for h in np.split(np.arange(C), config.n_head):
                a = k[j][:, h] @ q[i, h] * config.attention_scale(layer)
                weights = np.exp(a - a.max())
                attention[j] += weights / weights.sum()
                out[layer, i, h] = weights / weights.sum() @ v[j][:, h]
    return margin, live, out


def stays_by_position(policy, i, j):
    near = policy.window is None or i - j < policy.window
    return near or j < policy.first or (policy.stride > 0 and j % policy.stride == 0)


def check_against_dense(cache, inputs, chunks, live, out, policy=None):
    sequence, start = cache.new_sequence(), 0
    for count in chunks:
        results = walk_layers(cache, [sequence], [count], inputs, start, policy)
        start += count
        for layer, (got, dropped) in enumerate(results):
            np.testing.assert_allclose(got, out[layer, start - count:start], **CACHE_ATTENTION)
            expected = [(row, j) for row, i in enumerate(range(start - count, start)) if i > 0
                        for j in np.flatnonzero(live[layer, i - 1] & ~live[layer, i])]
            assert [tuple(pair) for pair in dropped] == expected
            positions = np.flatnonzero(live[layer, start - 1])
            np.testing.assert_array_equal(cache.live_positions(sequence, layer), positions)


@pytest.mark.parametrize("make", CACHES)
@given(data=st.data(), config=configs(), chunks=CHUNKS, page_slots=st.integers(1, 5), integers=st.booleans(),
       seed=SEEDS)
def test_equals_the_dense_definition(make, data, config, chunks, page_slots, integers, seed):
    inputs = Inputs(config, sum(chunks), np.random.default_rng(seed), integers)
    threshold = data.draw(thresholds(config))
    margin, live, out = dense(config, inputs, threshold=threshold)
    assume(integers or margin > SCORE_MARGIN)
    check_against_dense(with_pages(make, config, page_slots, threshold=threshold), inputs, chunks, live, out)


@pytest.mark.parametrize("make", CACHES)
@settings(max_examples=200)
@given(config=configs(), chunks=CHUNKS, page_slots=st.integers(1, 5), exact=st.booleans(), seed=SEEDS,
       policy=any_policies(), kv=st.sampled_from(STORAGES), data=st.data())
def test_equals_the_dense_definition_under_every_policy_and_storage(
        make, config, chunks, page_slots, exact, seed, policy, kv, data):
    assume(config.int_n_embd is not None or not policy.learned)
    threshold = data.draw(thresholds(config, policy))
    inputs = Inputs(config, sum(chunks), np.random.default_rng(seed), exact, sharp=exact)
    margin, live, out = dense(config, inputs, policy, kv, threshold)
    assume(exact or margin > SCORE_MARGIN)
    cache = with_pages(make, config, page_slots, kv=kv, policy=policy, threshold=threshold)
    check_against_dense(cache, inputs, chunks, live, out, policy)


@pytest.mark.parametrize("make", CACHES)
@pytest.mark.parametrize(("delay", "threshold", "gone"), [
    (0, 0, [[1, 0], [3, 2]]), (1, 0, [[2, 0]]), (2, 0, [[3, 0]]), (3, 0, []),  # what has left when row 3 is there
    (0, -np.inf, [[1, 0], [3, 2]]), (0, np.inf, [[1, 0], [2, 1], [3, 2]]), (0, 1e300, [[1, 0], [2, 1], [3, 2]])])
def test_nan_and_infinite_scores(make, delay, threshold, gone):
    """A NaN drops, +inf keeps, -inf drops; unless no score is judged yet, or none can be above the threshold."""
    cache = make(dataclasses.replace(CONFIG, int_delay=delay), threshold=threshold)
    batch = cache.reserve([cache.new_sequence()], [4])
    q_int, k_int = np.zeros((2, 4, 4), np.float32)
    q_int[:, 0], k_int[:3, 0] = 1, [np.nan, np.inf, -np.inf]
    with np.errstate(invalid="ignore"):
        rows = {name: np.zeros((4, 4), np.float32) for name in ("q", "k", "v")}
        out, dropped = cache.step(0, batch, **rows, q_int=q_int, k_int=k_int, beta=1.0)
    assert dropped.tolist() == gone
    assert np.isfinite(out).all()


@pytest.mark.parametrize("make", CACHES)
@pytest.mark.parametrize(("product", "beta", "threshold", "left"), [
    (2**-30, 1, 1, []), (2**-30, 1, 1 - 2**-24, [0]), (-(2**-30), 1, 1, []), (2**-30, 0, 0, [0]), (0, -3, -3, []),
    (1, -4, -3, []), (0.1, 0, 0.1, []), (1, 1, 1.9999999, [0])])
def test_a_score_is_rounded_before_it_is_compared(make, product, beta, threshold, left):
    """As in the dense forward: 2^-30 + 1 is 1, and so a tie with 1; taken from beta, the threshold would keep it."""
    cache = make(CONFIG, threshold=threshold)
    batch = cache.reserve([cache.new_sequence()], [2])
    q_int, k_int = np.zeros((2, 2, 4), np.float32)
    q_int[1, 0], k_int[0, 0] = 2, product  # 2 = sqrt(r)
    row = np.zeros((2, 4), np.float32)
    cache.step(0, batch, row, row, row, q_int, k_int, beta)
    assert cache.live_positions(0, 0).tolist() == [*left, 1]


@pytest.mark.parametrize("make", CACHES)
def test_a_threshold_that_cannot_be(make):
    with pytest.raises(ValueError, match="threshold must be a number, not nan"):
        make(CONFIG, threshold=np.nan)
    with pytest.raises(ValueError, match=r"threshold is 0\.5, but nothing is dropped by a learned score"):
        make(CONFIG, policy=policies.window(3), threshold=0.5)


class SideBySide(RuleBasedStateMachine):
    """KVCache and NativeCache, the same calls: ragged blocks, forks, releases, a bound; every policy and storage."""

    @initialize(config=configs(), page_slots=st.integers(1, 5), bound=st.none() | st.integers(1, 40),
                policy=any_policies(), kv=st.sampled_from(STORAGES), data=st.data())
    def start(self, config, page_slots, bound, policy, kv, data):
        self.policy = policies.dense if policy.learned and config.int_n_embd is None else policy
        page = page_bytes(config, page_slots, kv, self.policy)
        max_bytes, threshold = bound and bound * page, data.draw(thresholds(config, self.policy))
        self.numpy = KVCache(config, kv=kv, policy=self.policy, threshold=threshold)
        self.native = NativeCache(config, page_slots, max_bytes, kv, self.policy, threshold)
        self.config, self.page_slots, self.lengths = config, page_slots, {}
        self.names = {}  # the NativeCache's handles
        self.ledger = Ledger(self.numpy, self.native, self.names, page_slots, max_bytes, page)

    @rule()
    def new_sequence(self):
        handle = self.numpy.new_sequence()
        self.lengths[handle], self.names[handle] = 0, self.native.new_sequence()

    @precondition(lambda self: self.lengths)
    @rule(data=st.data())
    def release(self, data):
        handle = data.draw(st.sampled_from(sorted(self.lengths)))
        for cache, name in ((self.numpy, handle), (self.native, self.names[handle])):
            cache.release(name)
            with pytest.raises(ValueError, match=f"sequence {name} is unknown or was released"):
                cache.live_positions(name, 0)
        del self.lengths[handle], self.names[handle]

    @precondition(lambda self: self.lengths)
    @rule(data=st.data())
    def fork(self, data):
        parent = data.draw(st.sampled_from(sorted(self.lengths)))
        child = self.numpy.fork(parent)
        self.lengths[child], self.names[child] = self.lengths[parent], self.native.fork(self.names[parent])

    @rule()
    def trim(self):
        self.native.trim()
        self.ledger.pages = self.ledger.owned()
        assert self.native.stats().bytes_scratch == 0

    @precondition(lambda self: self.lengths)
    @rule(data=st.data(), seed=SEEDS)
    def feed(self, data, seed):
        handles = data.draw(st.lists(st.sampled_from(sorted(self.lengths)), unique=True))
        starts = [self.lengths[handle] for handle in handles]
        counts = [data.draw(st.integers(0, min(4, self.config.n_positions - start))) for start in starts]
        inputs = Inputs(self.config, sum(counts), np.random.default_rng(seed), sharp=self.policy.heavy is not None)
        names = [self.names[handle] for handle in handles]
        too_many = self.ledger.reserve(self.ledger.more(handles, counts))
        if too_many:
            with pytest.raises(CacheFull, match=f"the cache needs {too_many} bytes"):
                self.native.reserve(names, counts)
            return
        for handle, count in zip(handles, counts, strict=True):
            self.lengths[handle] += count
        expected, actual = (walk_layers(cache, who, counts, inputs, policy=self.policy)
                            for cache, who in ((self.numpy, handles), (self.native, names)))
        for (out, dropped), (native_out, native_dropped) in zip(expected, actual, strict=True):
            np.testing.assert_array_equal(native_dropped, dropped)
            np.testing.assert_allclose(native_out, out, **CACHE_ATTENTION)

    @invariant()
    def same_tokens(self):
        for handle in self.lengths:
            for layer in range(self.config.n_layer):
                positions, name = self.numpy.live_positions(handle, layer), self.names[handle]
                np.testing.assert_array_equal(self.native.live_positions(name, layer), positions)
                assert self.native.slot_table(name, layer).size < len(positions) + self.page_slots

    @invariant()
    def the_memory_of_the_ledger(self):
        stats, logical, page = self.native.stats(), self.ledger.logical(), self.ledger.page
        owned = self.ledger.owned()
        assert stats[:4] == (self.numpy.stats().live_tokens, logical * self.page_slots, owned * page,
                             self.ledger.pages * page)
        assert stats.bytes_logical == logical * page and owned * page <= stats.bytes_peak
        assert self.numpy.stats().bytes_logical == stats.live_tokens * self.numpy._token_bytes

    @invariant()
    def pages_count_their_owners(self):
        for page, live, owners in owned_pages(self.native):
            assert ffi.cast("uint32_t *", page.area[lib.DCP_REST])[0] == len(owners) and live
            assert len({layer for _, layer in owners}) == 1

    @invariant()
    def dead_slots_do_not_matter(self):
        poison(self.native)


if native.available():
    TestSideBySide = SideBySide.TestCase


@pytest.mark.parametrize("make", CACHES)
def test_a_layer_without_scores_of_its_own_inherits_drops(make):
    cache = with_pages(make, dataclasses.replace(CONFIG, int_n_embd=None, propagate_in_depth=True), 2)
    sequence = cache.new_sequence()
    batch = cache.reserve([sequence], [4])
    row = np.ones((4, 4), np.float32)
    inherited = np.array([[2, 0], [3, 1]], np.int32)
    _, dropped = cache.step(0, batch, row, row, row, inherited=inherited)
    assert dropped.tolist() == inherited.tolist()
    assert cache.live_positions(sequence, 0).tolist() == [2, 3]
