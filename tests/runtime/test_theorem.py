"""The theorem: cached decoding is the dense forward at alpha = inf, whatever the delay and the threshold.

For any weights, ragged batch and way to cut the texts into chunks: the logits of every token, and the live positions
in every layer after every token. Sets must be equal wherever no score is within 1e-4 of the threshold; logits to
rounding.
"""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from models import random_model, random_models
from theorem_tools import BACKENDS, THRESHOLDS, dense_with, schedules
from tolerances import SCORE_MARGIN, THEOREM_LOGITS

from dcp_ref import Config, Engine, forward, generate


class Watched:
    """An engine's decoder, and who left its cache when: (layer, sequence) -> {position: the row that dropped it}."""

    def __init__(self, engine):
        self.engine, self.feed, self.left = engine, engine._decoder.feed, defaultdict(dict)
        engine._decoder.feed = self

    def __call__(self, handles, counts, ids, wanted, out, _, pinned):
        starts = [self.engine._cache.length(handle) for handle in handles]
        rows = [(s, start + t) for s, start, n in zip(handles, starts, counts, strict=True) for t in range(n)]
        drops = []
        self.feed(handles, counts, ids, wanted, out, drops, pinned)
        for layer, dropped in enumerate(drops):
            for row, position in dropped.tolist():
                sequence, i = rows[row]
                assert position not in self.left[layer, sequence], "dropped twice"
                self.left[layer, sequence][position] = i

    def live(self, layer, sequence, T):  # [T, T]: is j live after token i
        left = [self.left[layer, sequence].get(j, T) for j in range(T)]
        return np.array([[j <= i < left[j] for j in range(T)] for i in range(T)])


@given(random_models())
def test_a_model_that_fails_is_shown_by_what_makes_it_again(m):
    again = eval(repr(m), {"random_model": random_model, "Config": Config})
    assert again.config == m.config and len(repr(m)) < 1000
    for name, x in again.params.items():
        np.testing.assert_array_equal(x, m.params[name])


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=200)
@given(random_models(), schedules(16), st.integers(0, 2**32 - 1), st.booleans(), st.sampled_from(THRESHOLDS))
def test_decoding_is_the_dense_forward(backend, m, schedule, seed, last, threshold):
    lengths, calls = schedule
    threshold = threshold if m.config.int_n_embd else 0.0
    rng = np.random.default_rng(seed)
    texts = [rng.integers(0, m.config.vocab_size, n) for n in lengths]
    expected = [dense_with(m, ids, threshold=threshold) for ids in texts]
    engine = Engine(m, backend, threshold=threshold)
    watched = Watched(engine)
    handles = [engine.new_sequence() for _ in texts]
    fed = [0] * len(texts)
    for call in calls:
        tokens = [texts[b][fed[b] : fed[b] + n].tolist() for b, n in call]
        results = engine.feed([handles[b] for b, _ in call], tokens, logits="last" if last else "all")
        for (b, n), got in zip(call, results, strict=True):
            logits, live = expected[b]
            rows = slice(fed[b] + n - 1, fed[b] + n) if last else slice(fed[b], fed[b] + n)
            np.testing.assert_allclose(np.atleast_2d(got), logits[rows], **THEOREM_LOGITS)
            fed[b] += n
            for layer in range(m.config.n_layer):
                now = engine.live_positions(handles[b], layer)
                assert now.dtype == np.int64
                np.testing.assert_array_equal(now, np.flatnonzero(live[layer, fed[b] - 1]))
    for b, handle in enumerate(handles):
        for layer in range(m.config.n_layer):
            np.testing.assert_array_equal(watched.live(layer, handle, lengths[b]), expected[b][1][layer])
    assert engine.stats().live_tokens == sum(live[:, -1].sum() for _, live in expected)


@pytest.mark.parametrize("backend", BACKENDS)
@given(random_models(), st.lists(st.lists(st.integers(0, 10), min_size=1, max_size=8), min_size=1, max_size=3))
def test_greedy_generation_is_the_dense_argmax(backend, m, prompts):
    results = generate(m, prompts, max_new_tokens=7, temperature=0, backend=backend)
    for prompt, result in zip(prompts, results, strict=True):
        ids = list(prompt)
        for token in result.ids:
            logits, _ = dense_with(m, np.array(ids))
            best = np.sort(logits[-1])[-2:]
            assume(best[1] - best[0] > SCORE_MARGIN)  # else rounding may choose
            assert token == logits[-1].argmax()
            ids.append(token)
        assert len(result.ids) == 7 and result.stop_reason == "length"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("beta", [0.0, 1.0, -1.0])
@given(m=random_models(), chunks=st.lists(st.integers(1, 5), min_size=1, max_size=4), threshold=st.integers(-2, 2))
def test_exact_scores_leave_no_doubt(backend, beta, threshold, m, chunks):
    """Zero interaction weights: every score is exactly beta, and beta = threshold is a tie, which drops."""
    kept = beta > threshold
    assume(m.config.int_n_embd is not None and sum(chunks) <= m.config.n_positions)
    params = dict(m.params)
    for layer in range(m.config.n_layer):
        for name in ("q_int.weight", "k_int.weight", "int_bias"):
            params[f"h.{layer}.attn.{name}"] = np.zeros_like(m.params[f"h.{layer}.attn.{name}"])
        params[f"h.{layer}.attn.int_bias"] += np.float32(beta)
    ids = np.arange(sum(chunks)) % m.config.vocab_size
    logits, mask = forward(params, ids[None], m.config, threshold=threshold)
    old = np.subtract.outer(np.arange(len(ids)), np.arange(len(ids))) > m.config.int_delay
    assert (mask[..., old] == kept).all() and (mask[..., ~old] == 1).all()
    engine, start = Engine(m._replace(params=params), backend, threshold=threshold), 0
    sequence = engine.new_sequence()
    for n in chunks:
        [got] = engine.feed([sequence], [ids[start : start + n]], logits="all")
        np.testing.assert_allclose(got, logits[0, start : start + n], **THEOREM_LOGITS)
        start += n
        for layer in range(m.config.n_layer):
            live = range(0 if kept else max(start - 1 - m.config.int_delay, 0), start)
            assert engine.live_positions(sequence, layer).tolist() == list(live)
