"""The theorem in fewer bits: both backends with the same storages drop the same tokens and give the same logits.

While every |s| exceeds a margin, and so does every difference that decides between two heavy hitters. Layer by layer,
without a margin: test_cache.py.
"""

import math

import numpy as np
import pytest
from cache_tools import any_policies
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from models import moderate_model, random_models
from theorem_tools import choice_margins, schedules
from tolerances import STORED

from dcp_ref import Engine, native, policies
from dcp_ref.policies import Policy
from dcp_ref.runtime.cache import KVCache
from dcp_ref.runtime.precision import STORAGES

if not native.available():
    pytest.skip("the C extension is not built", allow_module_level=True)


@pytest.fixture(scope="module")
def margins():
    """How close every decision of KVCache was, since this was cleared."""
    found: list[float] = []
    decode, drops = KVCache._decode, Policy.drops

    def watched_decode(self, t, x, row, scale, pinned):
        if self.policy.learned and len(t.position):
            s = t.k_int @ x.q_int[row] / math.sqrt(t.k_int.shape[1]) + x.beta
            found.append(np.abs(s).min())
        return decode(self, t, x, row, scale, pinned)

    def watched_drops(self, *arguments):
        out = drops(self, *arguments)
        found.extend(choice_margins(self, *arguments, out))
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KVCache, "_decode", watched_decode)
        patch.setattr(Policy, "drops", watched_drops)
        yield found


def fed(model, texts, calls, backend, **options):
    """Logits after every call, and the live positions of the sequences in it."""
    engine = Engine(model, backend, **options)
    handles, start, rows, live = [engine.new_sequence() for _ in texts], [0] * len(texts), [], []
    for call in calls:
        tokens = [texts[b][start[b] : start[b] + n] for b, n in call]
        rows += engine.feed([handles[b] for b, _ in call], tokens, logits="all")
        live += [engine.live_positions(handles[b], layer).tolist() for b, _ in call
                 for layer in range(model.config.n_layer)]
        for b, n in call:
            start[b] += n
    return np.concatenate(rows), live, engine.stats()


@pytest.mark.parametrize("kv", STORAGES)
@pytest.mark.parametrize("weights", STORAGES)
@settings(max_examples=40)
@given(random_models(), st.none() | any_policies(), schedules(16), st.integers(0, 2**32 - 1))
def test_both_backends_with_the_same_bits(margins, weights, kv, m, policy, schedule, seed):
    policy = None if m.config.int_n_embd is None and policy and policy.learned else policy
    lengths, calls = schedule
    rng = np.random.default_rng(seed)
    texts = [rng.integers(0, m.config.vocab_size, n) for n in lengths]
    margin, close = STORED[kv]
    margins.clear()
    expected, expected_live, stats = fed(m, texts, calls, "numpy", weights=weights, kv=kv, policy=policy)
    assume(min(margins, default=math.inf) > margin)
    got, live, native_stats = fed(m, texts, calls, "native", weights=weights, kv=kv, policy=policy)
    assert live == expected_live
    np.testing.assert_allclose(got, expected, **close)
    assert native_stats.live_tokens == stats.live_tokens


@pytest.mark.parametrize("kv", STORAGES)
@pytest.mark.parametrize("weights", STORAGES)
@pytest.mark.parametrize("policy", [policies.dense, policies.sinks(3, 20)], ids=str)
def test_a_longer_text(policy, weights, kv):
    """Several pages and panels, rounds of a prompt; nothing is decided by a score."""
    model = moderate_model()
    text = np.random.default_rng(0).integers(0, 300, 120)
    calls = [[(0, 70)], [(0, 1)], [(0, 49)]]
    (got, live, stats), (expected, expected_live, expected_stats) = (
        fed(model, [text], calls, backend, weights=weights, kv=kv, policy=policy) for backend in ("native", "numpy"))
    assert live == expected_live and stats.live_tokens == expected_stats.live_tokens
    np.testing.assert_allclose(got, expected, **STORED[kv][1])
    full, _, _ = fed(model, [text], calls, "native", policy=policy)
    assert np.array_equal(got, full) == (weights == kv == "float32")  # fewer bits are not the same bits
