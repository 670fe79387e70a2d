"""Continuations scored through the cache, beside the dense forward."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from text_models import CONFIG, TOKENIZER, text_model
from theorem_tools import BACKENDS
from tokenizers import processors
from tokenizers_of_all_kinds import KINDS
from tolerances import EVALUATED
from training_tools import failing

from dcp_ref import Engine, forward, policies
from dcp_ref.analysis.likelihood import fit, nats, pair_ids, score
from dcp_ref.checkpoints.tokenizer import Tokenizer

MODEL = text_model()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("policy", ["learned", "dense", "sinks:1,3", "heavy_hitters:2,2"])
def test_equals_the_dense_forward(backend, policy):
    rng, rule = np.random.default_rng(3), policies.parse(policy)
    ids = rng.integers(0, CONFIG.vocab_size, (6, 30)).tolist()
    pairs = [(ids[0][:9], ids[n][9 : 12 + n]) for n in range(3)] + [(ids[n][:4], ids[n][4:5]) for n in (3, 4, 5)]
    engine = Engine(MODEL, backend, policy=rule)
    found = score(engine, pairs)
    for (context, rest), one in zip(pairs, found, strict=True):
        rows = forward(MODEL.params, [context + rest], CONFIG, policy=rule).logits[0, len(context) - 1 : -1]
        log_p = rows.astype(np.float64) - np.log(np.exp(rows.astype(np.float64)).sum(-1, keepdims=True))
        assert_allclose(one.nats, -log_p[np.arange(len(rest)), rest].sum(), **EVALUATED)
        assert one.greedy == (rows.argmax(-1) == rest).all()
    assert engine.stats().live_tokens == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("call", [1, 2, 3])
def test_nothing_is_held_when_scoring_fails(backend, call, monkeypatch):
    engine = Engine(MODEL, backend)
    monkeypatch.setattr(Engine, "feed", failing(Engine.feed, call, KeyboardInterrupt(), after=False))
    with pytest.raises(KeyboardInterrupt):
        score(engine, [([1, 2, 3], [4, 5]), ([1, 2, 3], [6, 7])])
    assert engine.stats().live_tokens == 0 and not engine._cache._sequences.all()


def test_greedy_is_what_greedy_decoding_writes():
    context, written = TOKENIZER.encode("the old man"), []
    for _ in range(4):
        written.append(int(forward(MODEL.params, [context + written], CONFIG).logits[0, -1].argmax()))
    other = [*written[:3], (written[3] + 1) % CONFIG.vocab_size]
    assert [one.greedy for one in score(Engine(MODEL), [(context, written), (context, other)])] == [True, False]


def test_nats_of_large_logits():
    logits = np.array([[1e4, 0, -1e4], [-80, -80, -80]], np.float32)
    assert_allclose(nats(logits, np.array([1, 2])), [1e4, np.log(3)], rtol=1e-6)


@given(st.text("ab \n", min_size=0, max_size=6), st.text("ab \n", min_size=1, max_size=6))
def test_a_pair_is_the_text(context, continuation):
    one, two = pair_ids(TOKENIZER, context, continuation)
    assert one and two
    if context.strip():
        assert TOKENIZER.decode(one + two) == context + continuation
        assert TOKENIZER.decode(one) == context.rstrip()
    else:
        assert one == [TOKENIZER.eos_id] and TOKENIZER.decode(two) == context + continuation


def test_what_the_tokenizer_puts_before_a_text_begins_a_pair():
    backend = KINDS["metaspace"]()
    backend.post_processor = processors.TemplateProcessing(single=["</s>", "$A"], special_tokens=[("</s>", 1)])
    tokenizer = Tokenizer(backend)
    one, two = pair_ids(tokenizer, "the old", " man")
    assert one == tokenizer.encode("the old") and one[0] == 1 and one + two == tokenizer.encode("the old man")
    assert pair_ids(tokenizer, "", "the old") == ([1], tokenizer.encode("the old")[1:])


def test_a_pair_that_the_tokenizer_would_join():
    """The text as a whole has fewer tokens than its parts: the continuation still has some."""
    tokenizer = Tokenizer.train(["abab abab"], 300)
    assert len(tokenizer.encode("abab")) == 1
    assert pair_ids(tokenizer, "aba", "b") == (tokenizer.encode("aba"), tokenizer.encode("b"))


def test_pairs_that_cannot_be():
    with pytest.raises(ValueError, match="no text to score"):
        pair_ids(TOKENIZER, "the", "")
    plain = Tokenizer(KINDS["metaspace"]())
    assert plain.eos_id is None
    with pytest.raises(ValueError, match="the context is empty"):
        pair_ids(plain, "", "the")


def test_fit():
    assert fit(([1, 2, 3], [4, 5]), 4) == ([1, 2, 3], [4, 5])
    assert fit(([1, 2, 3], [4, 5]), 3) == ([2, 3], [4, 5])
    assert fit(([1, 2, 3], [4, 5]), 2) == ([3], [4, 5])
    with pytest.raises(ValueError, match=r"2 tokens to score are more than n_positions \(1\)"):
        fit(([1, 2, 3], [4, 5]), 1)
