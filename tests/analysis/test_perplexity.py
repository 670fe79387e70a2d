"""Perplexity and share kept through the cache are those of the dense forward, masked."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import SMALL, moderate_model, random_model
from numpy.testing import assert_allclose
from theorem_tools import BACKENDS
from tolerances import EVALUATED
from training_tools import failing

from dcp_ref import Engine, forward, policies
from dcp_ref.analysis import perplexity, windows
from dcp_ref.analysis.perplexity import evaluate, rows_at, spans
from dcp_ref.training import step

MODEL = moderate_model()
TOKENS = np.random.default_rng(0).integers(0, MODEL.config.vocab_size, 150).astype(np.uint16)
POLICIES = ["learned", "dense", "window:9", "strided:3,7", "sinks:2,9", "heavy_hitters:4,5"]


def dense(model, policy, tokens, context, stride, threshold=0.0):
    """The same by the dense forward, window by window: (nats [T], live [L, T])."""
    nats, live = np.zeros(context), np.zeros((model.config.n_layer, context), int)
    for start, scored, end in spans(len(tokens) - 1, context, stride):
        logits, own = forward(model.params, tokens[None, start:end].astype(int), model.config, policy=policy,
                              threshold=threshold)
        mask = np.cumprod(own, axis=0) if model.config.propagate_in_depth else own
        logits = logits[0].astype(np.float64)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        for i in range(scored - start, end - start):
            nats[i] -= log_p[i, tokens[start + i + 1]]
            live[:, i] += (mask[:, 0, i, :i] > 0).sum(-1)
    return nats, live


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("stride", [40, 15])
def test_equals_the_dense_forward(backend, policy, stride):
    rule = policies.parse(policy)
    found = evaluate(Engine(MODEL, backend, policy=rule), TOKENS, 40, stride, batch=3)
    nats, live = dense(MODEL, rule, TOKENS, 40, stride)
    np.testing.assert_array_equal(found.live, live)
    np.testing.assert_array_equal(found.tokens, rows_at(len(TOKENS), 40, stride))
    assert found.tokens.sum() == len(TOKENS) - 1
    assert_allclose(found.nats, nats, **EVALUATED)
    pairs = np.arange(40) @ found.tokens
    assert_allclose(found.layers_kept, live.sum(1) / pairs, rtol=1e-15)
    assert 0 < found.share_kept < 1 or policy == "dense"


def test_windows_of_one_s_own():
    """Each is scored whole: the sums are those of each window alone."""
    found = evaluate(Engine(MODEL), TOKENS, 40, batch=2, starts=[0, 7, 109])
    alone = [evaluate(Engine(MODEL), TOKENS[start : start + 41], 40) for start in (0, 7, 109)]
    np.testing.assert_array_equal(found.live, sum(one.live for one in alone))
    assert_allclose(found.nats, sum(one.nats for one in alone), **EVALUATED)
    assert set(found.tokens) == {3}
    for starts in ([], [-1], [0, 110]):
        with pytest.raises(ValueError, match="starts must be from 0 to 109, for windows of 40 rows"):
            evaluate(Engine(MODEL), TOKENS, 40, starts=starts)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_window_that_has_ended_is_not_held(backend, monkeypatch):
    engine, most = Engine(MODEL, backend, policy=policies.dense), []
    feed = Engine.feed
    monkeypatch.setattr(Engine, "feed", lambda self, sequences, lists: most.append(
        (len(sequences), len(self._cache._sequences.all()))) or feed(self, sequences, lists))
    evaluate(engine, TOKENS[:75], 40, batch=2)  # the second window is shorter
    assert most == 34 * [(2, 2)] + 6 * [(1, 1)] and not engine._cache._sequences.all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("owner", [Engine, windows])
def test_nothing_is_held_when_an_evaluation_fails(backend, owner, monkeypatch):
    engine, name = Engine(MODEL, backend), "feed" if owner is Engine else "nats"
    monkeypatch.setattr(owner, name, failing(getattr(owner, name), 5, KeyboardInterrupt(), after=False))
    with pytest.raises(KeyboardInterrupt):
        evaluate(engine, TOKENS, 40, batch=3)
    assert engine.stats().live_tokens == 0 and not engine._cache._sequences.all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("threshold", [-1.0, 2.0])
def test_a_delay_and_a_threshold(backend, threshold):
    model = moderate_model(int_delay=3)
    found = evaluate(Engine(model, backend, threshold=threshold), TOKENS, 40)
    nats, live = dense(model, policies.learned, TOKENS, 40, 40, threshold)
    np.testing.assert_array_equal(found.live, live)
    assert_allclose(found.nats, nats, **EVALUATED)


@pytest.mark.parametrize("backend", BACKENDS)
def test_drops_that_later_layers_inherit(backend):
    model = random_model(dataclasses.replace(SMALL, n_positions=16, propagate_in_depth=True), 1, 1.0)
    tokens = np.random.default_rng(1).integers(0, SMALL.vocab_size, 60)
    found = evaluate(Engine(model, backend), tokens)
    nats, live = dense(model, policies.learned, tokens, 16, 16)
    np.testing.assert_array_equal(found.live, live)
    assert_allclose(found.nats, nats, **EVALUATED)
    assert (np.diff(found.layers_kept) <= 0).all()


def test_is_what_training_reports():
    found = evaluate(Engine(MODEL), TOKENS[:121], 40)
    expected, share = step.perplexity(MODEL.params, MODEL.config, TOKENS[:121], 40, 3)
    assert found.perplexity == pytest.approx(expected, rel=EVALUATED["rtol"])
    assert found.share_kept == pytest.approx(share, rel=1e-12)


@given(st.integers(1, 200), st.integers(2, 40), st.data())
def test_every_row_is_scored_once_and_with_context(rows, context, data):
    stride = data.draw(st.integers(1, context))
    found = spans(rows, context, stride)
    assert [i for span in found for i in range(span.scored, span.end)] == list(range(rows))
    assert all(span.end - span.start <= context and span.scored < span.end for span in found)
    assert all(span.scored - span.start == context - stride for span in found[1:])
    assert all(span.end - span.start == context for span in found[:-1])


def test_the_batch_does_not_matter():
    one, many = (evaluate(Engine(MODEL), TOKENS, 40, 25, batch=batch) for batch in (1, 64))
    np.testing.assert_array_equal(one.live, many.live)
    assert_allclose(one.nats, many.nats, rtol=1e-12)
    assert perplexity.batch_of(MODEL.config, 100) == 64
    assert perplexity.batch_of(dataclasses.replace(SMALL, n_embd=768, n_layer=12, n_head=12), 1024) == 14
    assert perplexity.batch_of(dataclasses.replace(SMALL, n_embd=2**14, n_layer=99), 2**12) == 1


def test_nothing_stays_behind_in_the_engine(monkeypatch):
    engine = Engine(MODEL)
    evaluate(engine, TOKENS, 40)
    assert engine.stats().live_tokens == 0
    monkeypatch.setattr(windows, "nats", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate(engine, TOKENS, 40)
    assert engine.stats().live_tokens == 0


def test_buckets_and_bytes():
    found = evaluate(Engine(MODEL), TOKENS[:101], 100)
    report = perplexity.report(found, 300)
    assert [(b["first"], b["last"], b["tokens"]) for b in report["positions"]] == [
        (0, 15, 16), (16, 31, 16), (32, 63, 32), (64, 99, 36)]
    total = sum(b["tokens"] * np.log(b["perplexity"]) for b in report["positions"])
    assert total / 100 == pytest.approx(report["nats_per_token"])
    assert np.exp(report["nats_per_token"]) == pytest.approx(report["perplexity"])
    assert report["bits_per_byte"] == pytest.approx(report["nats_per_token"] * 100 / 300 / np.log(2))
    first = found.part(0, 16)
    assert report["positions"][0]["share_kept"] == first.live.sum() / (2 * sum(range(16)))
    later = evaluate(Engine(MODEL), TOKENS[:141], 100, 20)
    assert [b["tokens"] for b in perplexity.report(later, 0)["positions"]] == [16, 16, 32, 76]
    assert perplexity.report(later, 0)["bits_per_byte"] is None


@pytest.mark.parametrize(("arguments", "words"), [
    ((TOKENS, 1), "context must be from 2 to n_positions"), ((TOKENS, 129), r"n_positions \(128\), not 129"),
    ((TOKENS, 40, 41), r"stride must be from 1 to the context \(40\), not 41"), ((TOKENS, 40, 0), "stride"),
    ((TOKENS[:2], 40), "the text has 2 tokens: at least 3"),
])
def test_refusals(arguments, words):
    with pytest.raises(ValueError, match=words):
        evaluate(Engine(MODEL), *arguments)
    with pytest.raises(ValueError, match="batch must be 1 or more"):
        evaluate(Engine(MODEL), TOKENS, 40, batch=0)
