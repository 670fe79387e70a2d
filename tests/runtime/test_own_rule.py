"""Rules of one's own: the theorem on both backends, what a rule is given, what it may answer, and what it may raise."""

import dataclasses

import numpy as np
import pytest
from cache_tools import CACHES
from hypothesis import given, settings
from hypothesis import strategies as st
from models import SMALL, moderate_model, random_model, random_models
from theorem_tools import BACKENDS, schedules
from tolerances import THEOREM_LOGITS

from dcp_ref import Engine, forward, load, native, policies, trace
from dcp_ref.native.cache import NativeCache
from dcp_ref.policies import Policy
from dcp_ref.runtime.cache import KVCache
from dcp_ref.runtime.precision import STORAGES
from dcp_ref.testing import check_policy
from dcp_ref.tracing import load as load_trace
from dcp_ref.tracing.drops import REASONS


def by_position(i, positions, scores, attention):
    return (positions % 3 == i % 3) & (i - positions > 2)


def lightest_of_five(i, positions, scores, attention):
    gone = np.zeros(len(positions), bool)
    if len(positions) > 5:
        gone[attention.argmin()] = True
    return gone


def low_scores(i, positions, scores, attention):
    return np.zeros(len(positions), bool) if scores is None else ~(scores > 0.5)


RULES = [by_position, lightest_of_five, low_scores]


def nothing(i, positions, scores, attention):
    return np.zeros(len(positions), bool)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("function", RULES, ids=lambda rule: rule.__name__)
@settings(max_examples=40)
@given(m=random_models(), schedule=schedules(16), seed=st.integers(0, 2**32 - 1), share=st.sampled_from([0.0, 0.3]),
       data=st.data())
def test_decoding_by_a_rule_is_the_dense_forward_by_it(backend, function, m, schedule, seed, share, data):
    """With pins, in any batch and cut, and after forks."""
    lengths, calls = schedule
    rng, policy = np.random.default_rng(seed), policies.rule("mine", function)
    texts = [rng.integers(0, 11, n) for n in lengths]
    pins = [rng.random(n) < share for n in lengths]
    engine = Engine(m, backend, policy=policy)
    handles, fed = [engine.new_sequence() for _ in texts], [0] * len(texts)
    dense = [forward(m.params, ids[None], m.config, policy=policy, pinned=own)
             for ids, own in zip(texts, pins, strict=True)]
    for call in calls:
        parts = [(b, slice(fed[b], fed[b] + n)) for b, n in call]
        if data.draw(st.booleans()):
            handles[parts[0][0]] = engine.fork(handles[parts[0][0]])
        results = engine.feed([handles[b] for b, _ in parts], [texts[b][part] for b, part in parts], logits="all",
                              pinned=[pins[b][part] for b, part in parts])
        for (b, part), got in zip(parts, results, strict=True):
            fed[b] = part.stop
            mask = np.cumprod(dense[b].interaction, axis=0) if m.config.propagate_in_depth else dense[b].interaction
            for layer in range(m.config.n_layer):
                np.testing.assert_array_equal(engine.live_positions(handles[b], layer),
                                              np.flatnonzero(mask[layer, 0, part.stop - 1, : part.stop]))
            np.testing.assert_allclose(got, dense[b].logits[0, part], **THEOREM_LOGITS)


@pytest.mark.parametrize("depth", [False, True])
@pytest.mark.parametrize("learned", [False, True])
def test_what_a_rule_is_given(depth, learned):
    """Dense and decoding call it for the same rows of the same layers, with the same numbers."""
    calls = []

    def watching(i, positions, scores, attention):
        calls.append((i, positions.tolist(), None if scores is None else scores, attention))
        assert isinstance(i, int) and positions.dtype == np.int64 and len(attention) == len(positions)
        gone = by_position(i, positions, scores, attention)
        positions[:], attention[:] = -1, np.nan  # its own copies
        return gone

    config = dataclasses.replace(SMALL, propagate_in_depth=depth, int_n_embd=4 if learned else None)
    m, ids = random_model(config, 0, 1.0), np.arange(9)
    pinned = ids == 2
    forward(m.params, ids[None], config, policy=policies.rule("mine", watching), pinned=pinned)
    dense, calls[:] = list(calls), []
    for backend in BACKENDS:
        engine = Engine(m, backend, policy=policies.rule("mine", watching))
        engine.feed([engine.new_sequence()], [ids], pinned=[pinned])
        assert [call[:2] for call in calls] == [call[:2] for call in dense] and len(calls) == 27
        for got, expected in zip(calls, dense, strict=True):
            assert 2 not in got[1] and (got[2] is None) == (expected[2] is None) == (not learned)
            np.testing.assert_allclose(got[3], expected[3], rtol=1e-4, atol=1e-5)
            if learned:
                np.testing.assert_allclose(got[2], expected[2], rtol=1e-4, atol=1e-5)
        calls.clear()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kv", STORAGES)
@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_a_longer_text_in_every_storage(backend, kv, weights):
    model, text = moderate_model(), np.random.default_rng(0).integers(0, 300, 70)
    engine = Engine(model, backend, policy=policies.rule("mine", by_position), weights=weights, kv=kv, threads=2)
    sequence = engine.new_sequence()
    engine.feed([sequence], [text[:60]])
    [got] = engine.feed([sequence], [text[60:]])
    logits, mask = forward(model.params, text[None], model.config, policy=policies.rule("mine", by_position))
    for layer in range(2):
        assert engine.live_positions(sequence, layer).tolist() == np.flatnonzero(mask[layer, 0, -1]).tolist()
    if kv == weights == "float32":
        np.testing.assert_allclose(got, logits[0, -1], **THEOREM_LOGITS)


@pytest.mark.parametrize("answer", [
    None, True, [False] * 3, np.zeros(2, bool), np.zeros(3), np.zeros(3, int), np.zeros((3, 1), bool),
    np.array([0, 1])])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_wrong_answer_names_the_rule_and_changes_nothing(backend, answer):
    def wrong(i, positions, scores, attention):
        return answer if i == 3 and layer_calls.append(i) is None else np.zeros(len(positions), bool)

    layer_calls = []
    engine = Engine(moderate_model(), backend, policy=policies.rule("my rule", wrong))
    sequence = engine.new_sequence()
    engine.feed([sequence], [[1, 2, 3]])
    with pytest.raises(ValueError, match=r"policy my rule: in row 3 the rule returned .*booleans \[3\], one for each"):
        engine.feed([sequence], [[4]])
    assert engine.live_positions(sequence, 0).tolist() == [0, 1, 2] and len(layer_calls) == 1
    with pytest.raises(ValueError, match="policy my rule: in row 3"):
        forward(moderate_model().params, np.arange(5)[None], moderate_model().config,
                policy=policies.rule("my rule", wrong))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_what_a_rule_raises_leaves_the_engine_as_it_was(backend, error):
    def raising(i, positions, scores, attention):
        calls.append(i)
        if len(calls) == 9:
            raise error
        return by_position(i, positions, scores, attention)

    model, calls = moderate_model(), []
    engine, plain = (Engine(model, backend, policy=policies.rule("mine", each)) for each in (raising, by_position))
    sequence, twin = engine.new_sequence(), plain.new_sequence()
    engine.feed([sequence], [[1, 2, 3]])
    with pytest.raises(error):
        engine.feed([sequence], [[4, 5]])
    assert engine.live_counts([sequence]).tolist() == [[3], [3]]
    plain.feed([twin], [[1, 2, 3]])
    np.testing.assert_array_equal(*(each.feed([s], [[4, 5]])[0] for each, s in ((engine, sequence), (plain, twin))))


def test_what_no_rule_can_be():
    for make in (lambda: policies.rule("mine", 3), lambda: Policy("mine", True, rule=nothing),
                 lambda: Policy("mine", window=3, rule=nothing)):
        with pytest.raises(ValueError, match="policy mine: rule must be a function, and leave out learned and window"):
            make()
    with pytest.raises(ValueError, match=r"threshold is 0\.5, but nothing is dropped by a learned score"):
        Engine(moderate_model(), "numpy", policy=policies.rule("mine", nothing), threshold=0.5)
    assert str(policies.rule("mine", nothing)) == "mine" and KVCache in CACHES


@pytest.mark.skipif(not native.available(), reason="the C extension is not built")
def test_c_cannot_ask_a_rule():
    with pytest.raises(ValueError, match="policy mine: a rule of one's own decodes with KVCache"):
        NativeCache(moderate_model().config, policy=policies.rule("mine", nothing))
    assert isinstance(Engine(moderate_model(), "native", policy=policies.rule("mine", nothing))._cache, KVCache)


def test_a_trace_names_the_rule(tmp_path):
    tiny = load("tiny")
    found = trace(tiny, "The old man looked at the sea.", policies.rule("thirds", by_position))
    assert {REASONS[reason] for reason in found.drops.reason} == {"rule"} and np.isnan(found.drops.score).all()
    assert found.title.endswith("policy thirds") and found.counterfactual().delta.any()
    found.save(tmp_path / "own.safetensors")
    again = load_trace(tmp_path / "own.safetensors").with_model(tiny)
    np.testing.assert_array_equal(again.lifetime, found.lifetime)
    with pytest.raises(ValueError, match="policy thirds: this trace was read from a file, which holds no rule"):
        again.counterfactual()


@pytest.mark.parametrize("policy", [*(policies.rule(one.__name__, one) for one in RULES), policies.learned,
                                    policies.budget(4), policies.sinks(1, 3)], ids=str)
def test_the_helper_accepts_what_is_right(policy):
    check_policy(policy, load("tiny"), range(20, 50), pinned=np.arange(30) == 4, backends=BACKENDS)


def test_the_helper_finds_a_rule_that_remembers():
    """What a rule drops must follow from its arguments: `forward` asks it in another order than decoding does."""
    def moody(i, positions, scores, attention):
        calls.append(i)
        return np.full(len(positions), len(calls) % 4 == 0)

    calls = []
    with pytest.raises(AssertionError, match=r"policy moody, numpy, 1 tokens at a time: after token .*holds"):
        check_policy(policies.rule("moody", moody), load("tiny"), range(20, 50), backends=["numpy"])
