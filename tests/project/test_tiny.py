"""The shipped model: small, English, really pruned, and decoded as its dense forward says."""

import re

import numpy as np
import pytest
from story import TEXT
from theorem_tools import BACKENDS
from tolerances import TINY_LOGITS, TINY_MARGIN

from dcp_ref import Engine, block, forward, generate, load, trace
from dcp_ref.checkpoints.files import SHIPPED

MODEL = load("tiny")


def test_at_most_six_megabytes_and_a_card():
    assert sum(file.stat().st_size for file in (SHIPPED / "tiny").iterdir()) <= 6e6
    assert (SHIPPED / "tiny" / "README.md").exists()


def test_nine_tenths_of_the_context_are_dropped():
    ids = np.array([(MODEL.tokenizer.encode(TEXT) * 2)[: MODEL.config.n_positions]])
    assert ids.shape == (1, 512)
    mask = forward(MODEL.params, ids, MODEL.config).interaction
    assert mask[..., np.tri(512, k=-1, dtype=bool)].mean() <= 0.1


@pytest.mark.parametrize("share", [0.8, 0.5, 0.2, 0.1, 0.05, 0.02])
def test_the_card_s_thresholds_keep_about_their_shares(share):
    """Of a text that they were not measured on: within a quarter. And the card says what the config says."""
    assert trace(MODEL, TEXT, kept=share).share_kept.mean() == pytest.approx(share, rel=0.25)
    card = (SHIPPED / "tiny" / "README.md").read_text(encoding="utf-8")
    assert f"\n| {share:.0%} | {MODEL.config.threshold_for(share):.5g} | " in card


def test_it_knows_english():
    """Perplexity of a text it has not seen, and of the same words in another order."""

    def perplexity(text):
        ids = MODEL.tokenizer.encode(text)[:400]
        logits = forward(MODEL.params, [ids], MODEL.config).logits[0].astype(np.float64)
        log_p = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        log_p -= logits.max(-1, keepdims=True)
        return np.exp(-log_p[np.arange(len(ids) - 1), ids[1:]].mean())

    words = TEXT.split()
    shuffled = " ".join(np.random.default_rng(0).permutation(words))
    assert perplexity(" ".join(words)) < 120
    assert perplexity(shuffled) > 4 * perplexity(" ".join(words))


def test_what_it_writes_is_made_of_english_words():
    """Most words of three letters or more, greedily or drawn, stand in the tokenizer's vocabulary whole."""
    results = generate(MODEL, ["The old man looked at the sea", "She said"], 80, temperature=0.7, seed=3)
    known = {MODEL.tokenizer.decode([i]).strip().lower() for i in range(1, MODEL.tokenizer.vocab_size)}
    for result in results:
        words = [word.lower() for word in re.findall(r"[A-Za-z]{3,}", result.text)][1:-1]
        assert len(words) > 20
        assert np.mean([word in known for word in words]) > 0.7


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_theorem_on_real_text(backend, monkeypatch):
    """A prompt of 300 tokens in chunks, then 60 one by one: logits and live positions of the dense forward."""
    ids = MODEL.tokenizer.encode(TEXT)[:360]
    scores, plain = [], block.scores

    def recorded(*args):
        scores.append(plain(*args)[0][0])
        return plain(*args)

    monkeypatch.setattr(block, "scores", recorded)
    logits, mask = forward(MODEL.params, [ids], MODEL.config)
    mask = np.cumprod(mask, axis=0) if MODEL.config.propagate_in_depth else mask
    live = (mask[:, 0] > 0) & np.tri(len(ids), dtype=bool)
    decided = np.abs(np.array(scores))[:, 1:][live[:, :-1]]  # a score matters where its token was still there
    assert decided.min() > TINY_MARGIN, "this text is too close a call: take another"
    engine = Engine(MODEL, backend)
    sequence, start = engine.new_sequence(), 0
    for n in [128, 1, 171, *[1] * 60]:
        [row] = engine.feed([sequence], [ids[start : start + n]])
        start += n
        for layer in range(MODEL.config.n_layer):
            now = engine.live_positions(sequence, layer)
            np.testing.assert_array_equal(now, np.flatnonzero(live[layer, start - 1]))
        np.testing.assert_allclose(row, logits[0, start - 1], **TINY_LOGITS)
    assert engine.stats().live_tokens < 0.1 * 360 * MODEL.config.n_layer
