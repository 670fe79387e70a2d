"""The shipped model: small, English, really pruned, and decoded as its dense forward says."""

import re

import numpy as np
import pytest
from theorem_tools import BACKENDS
from tolerances import TINY_LOGITS, TINY_MARGIN

from dcp_ref import Engine, block, forward, generate, load
from dcp_ref.checkpoints.files import SHIPPED

MODEL = load("tiny")
TEXT = """\
The village lay in a hollow of the hills, a mile or more from the sea, and for as long as anyone could remember the
people who lived there had looked to the church tower to tell them the hour. One evening in the autumn, when the lamps
were lit and the doors were shut against the wind, the old clock stopped. Nobody noticed it until the morning. Then the
baker, who was always the first to rise, came out upon his step and looked up, as he had done every day for thirty
years, and saw that the hands were standing at a quarter past nine. He rubbed his eyes, and called to his wife; and
she, having looked in her turn, ran across the road to tell the schoolmaster, who was a man of learning, and was said to
have been in London. "It is very simple," said the schoolmaster. "The clock has stopped." This was felt to be true, and
for some minutes no one could think of anything to add to it. "But who is to mend it?" asked the baker at last. There
had been a man once, in the next village, who understood such things, but he had been dead these ten years, and his son
had gone away to be a soldier and had never been heard of again. They stood there in the cold, looking upwards, until
the doctor came by on his grey horse and asked them what the matter was. When he had heard it he laughed, and said that
for his own part he should be glad of a little rest from time; that people would be born, and fall ill, and die, whether
the clock told them to or not; and with that he rode away down the hill. But the old women shook their heads. They
remembered how the clock had stopped once before, in the year of the great storm, and how in that same week three boats
had gone out in the morning and had not come back. That night the wind rose. It came up from the sea with a sound like
a great many people speaking together in another room, and the children lay awake and listened to it, and were afraid.
"""


def test_at_most_six_megabytes_and_a_card():
    assert sum(file.stat().st_size for file in (SHIPPED / "tiny").iterdir()) <= 6e6
    assert (SHIPPED / "tiny" / "README.md").exists()


def test_nine_tenths_of_the_context_are_dropped():
    ids = np.array([(MODEL.tokenizer.encode(TEXT) * 2)[: MODEL.config.n_positions]])
    assert ids.shape == (1, 512)
    mask = forward(MODEL.params, ids, MODEL.config).interaction
    assert mask[..., np.tri(512, k=-1, dtype=bool)].mean() <= 0.1


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
