"""The record equals the dense masks: every policy, delay, depth and backend, however the tokens came."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from models import moderate_model, random_models
from theorem_tools import BACKENDS, judged_margins
from tolerances import SCORE_MARGIN
from trace_tools import traced_models

import dcp_ref
from dcp_ref import Engine, block, forward, generate, policies
from dcp_ref.policies import for_model
from dcp_ref.tracing import REASONS, windows

CLOSE = 1e-5  # attention sums of heavy hitters that rounding may order otherwise


def dense_live(m, ids, policy, threshold):  # -> bool [L, T, T]
    """Live pairs by the dense forward; rejects the example where rounding may decide."""
    margins, plain, drops = [], block.scores, policies.Policy.drops

    def scores(*args):
        s, saved = plain(*args)
        margins.extend(judged_margins(m.config, s, threshold))
        return s, saved

    def watched(self, i, position, attention, kept=False, s=None, delay=0):
        if self.heavy is not None:
            of = np.sort(attention[~self.stays(i, position)])
            margins.extend(np.diff(of) * SCORE_MARGIN / CLOSE)
        if self.budget is not None:
            margins.extend(np.diff(np.sort(s)))
        return drops(self, i, position, attention, kept, s, delay)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block, "scores", scores)
        patch.setattr(policies.Policy, "drops", watched)
        mask = forward(m.params, ids[None], m.config, policy=policy, threshold=threshold).interaction[:, 0]
    assume(min(margins, default=1) > SCORE_MARGIN)
    mask = np.cumprod(mask, axis=0) if m.config.propagate_in_depth else mask
    return (mask > 0) & np.tri(len(ids), dtype=bool)


def live_of(trace):  # -> bool [L, T, T]
    i, j = np.arange(len(trace.ids))[:, None], np.arange(len(trace.ids))
    return (j <= i) & (i < (j + trace.lifetime)[:, None])


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=500)
@given(traced_models())
def test_a_trace_is_the_dense_masks(backend, case):
    m, policy, threshold, ids = case
    live = dense_live(m, ids, for_model(m.config, policy), threshold)
    trace = dcp_ref.trace(m, ids, policy, threshold, backend)
    np.testing.assert_array_equal(live_of(trace), live)
    np.testing.assert_array_equal(trace.lifetime, live.sum(1))
    np.testing.assert_array_equal(trace.live_counts, live.sum(2))
    T = len(ids)
    below = np.tri(T, k=-1, dtype=bool)
    np.testing.assert_allclose(trace.share_kept, live[:, below].mean(1) if T > 1 else 1)
    assert (trace.backend, trace.prompt_tokens, trace.texts[0]) == (backend, T, f"[{ids[0]}]")


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=200)
@given(traced_models())
def test_a_reason_is_the_rule_that_decided(backend, case):
    m, policy, threshold, ids = case
    policy = for_model(m.config, policy)
    live = dense_live(m, ids, policy, threshold)
    trace = dcp_ref.trace(m, ids, policy, threshold, backend)
    drops = trace.drops
    T = len(ids)
    expected = [(i, layer, j) for i in range(1, T) for layer in range(m.config.n_layer) for j in range(i)
                if live[layer, i - 1, j] and not live[layer, i, j]]
    assert list(zip(drops.dropped_by, drops.layer, drops.position, strict=True)) == expected
    for n, (i, layer, j) in enumerate(expected):
        inherited = m.config.propagate_in_depth and not live[:layer, i, j].all()
        s = np.nan
        if policy.learned:
            x = trace.replayed.parts[: 2 + 2 * layer].sum(0)
            p = block.block_params(m.params, layer)
            n_x, _ = block.layer_norm(x, p["ln_1.weight"], p["ln_1.bias"], m.config.layer_norm_epsilon)
            s = block.scores(n_x, p["attn.q_int.weight"], p["attn.k_int.weight"], p["attn.int_bias"])[0][i, j]
        np.testing.assert_allclose(drops.score[n], s, rtol=1e-3, atol=1e-4)
        by_score = policy.learned and i - j > m.config.int_delay and not s > threshold
        assert REASONS[drops.reason[n]] == ("inherited" if inherited else "learned" if by_score else
                                            "budget" if policy.budget else "heavy" if policy.heavy else "window")
        assert drops.margin[n] == pytest.approx(drops.score[n] - threshold, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("backend", BACKENDS)
@given(traced_models(), st.lists(st.integers(1, 5), min_size=16, max_size=16))
def test_a_prompt_in_pieces_drops_the_same(backend, case, pieces):
    m, policy, threshold, ids = case
    dense_live(m, ids, for_model(m.config, policy), threshold)
    engine = Engine(m, backend, policy=policy, threshold=threshold)
    sequence, start, left = engine.new_sequence(), 0, np.full((m.config.n_layer, len(ids)), len(ids))
    for n in pieces:
        piece = ids[start : start + n]
        if not len(piece):
            break
        drops = ["what was there stays"]
        engine.feed([sequence], [piece], drops=drops)
        assert drops.pop(0) == "what was there stays"
        for layer, pairs in enumerate(drops):
            assert pairs.dtype == np.int32 and pairs.shape[1] == 2
            left[layer, pairs[:, 1]] = pairs[:, 0] + start
        start += n
    trace = dcp_ref.trace(m, ids, policy, threshold, backend)
    np.testing.assert_array_equal(left - np.arange(len(ids)), trace.lifetime)


@pytest.mark.parametrize("backend", BACKENDS)
@given(random_models(), st.lists(st.lists(st.integers(0, 10), min_size=1, max_size=9), min_size=1, max_size=3),
       st.integers(1, 9))
def test_generated_tokens_are_traced_as_they_come(backend, m, prompts, n):
    plain = generate(m, prompts, n, backend=backend)
    results = generate(m, prompts, n, backend=backend, trace=True)
    for prompt, result, without in zip(prompts, results, plain, strict=True):
        assert without.trace is None and result.ids == without.ids
        trace = result.trace
        assert trace.ids.tolist() == [*prompt, *result.ids][: len(trace.ids)]
        assert len(trace.ids) == min(len(prompt) + n - 1, 16) and trace.prompt_tokens == len(prompt)
        live = dense_live(m, trace.ids, for_model(m.config, None), 0.0)
        np.testing.assert_array_equal(live_of(trace), live)


def test_nothing_fed_is_no_trace():
    [result] = generate(moderate_model(), [[1, 2]], 0, trace=True)
    assert result.trace is None


def test_a_long_text_is_traced_in_windows():
    m = moderate_model()
    ids = np.arange(300) % m.config.vocab_size
    found = windows(m, ids)
    assert [len(one.ids) for one in found] == [128, 128, 44]
    np.testing.assert_array_equal(found[1].lifetime, dcp_ref.trace(m, ids[128:256]).lifetime)
    with pytest.raises(ValueError, match="text_or_ids is too long: 300 tokens, but the model has 128 positions"):
        dcp_ref.trace(m, ids)


@pytest.mark.parametrize(("arguments", "words"), [
    (([],), "text_or_ids is empty"), (("text",), "no tokenizer"), (([1], None, float("nan")), "threshold"),
    (([1, 300],), "token id 300"), (([1], policies.window(3), 0.0, None, True), "scores: policy window:3 has none"),
])
def test_bad_arguments_are_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        dcp_ref.trace(moderate_model(), *arguments)


def test_scores_of_live_pairs():
    m = moderate_model()
    trace = dcp_ref.trace(m, np.arange(60), scores=True)
    for layer in range(m.config.n_layer):
        pairs, live = trace.scores_of(layer), live_of(trace)[layer]
        before = np.vstack([np.zeros(60, bool), live[:-1]])
        np.testing.assert_array_equal(np.nonzero(before), (pairs.i, pairs.j))
        np.testing.assert_array_equal(live[pairs.i, pairs.j], pairs.score > 0)
    with pytest.raises(ValueError, match="layer must be 0"):
        trace.scores_of(2)
    with pytest.raises(ValueError, match="policy dense: no score decides"):
        dcp_ref.trace(m, [1, 2], policies.dense).scores_of(0)
