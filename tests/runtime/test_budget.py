"""Budgets: what a layer holds at most, a small case by hand, long prompts, scores that are all alike."""

import dataclasses

import numpy as np
import pytest
from cache_tools import CACHES, with_pages
from hypothesis import assume, given
from hypothesis import strategies as st
from models import moderate_model, random_models
from theorem_tools import BACKENDS, schedules
from tolerances import THEOREM_LOGITS

from dcp_ref import Config, Engine, forward, policies, trace
from dcp_ref.tracing.drops import REASONS

CONFIG = Config(vocab_size=1, n_positions=9, n_embd=4, n_layer=1, n_head=2, int_n_embd=1)


@pytest.mark.parametrize("make", CACHES)
@pytest.mark.parametrize("chunks", [[7], [1] * 7, [3, 4]])
@pytest.mark.parametrize(("delay", "pinned", "left"), [
    (0, [], {3: [0], 4: [2], 5: [3], 6: [4]}),  # of equals the earliest: 0 before 2, 4 before 5
    (1, [], {4: [0], 5: [2], 6: [3]}), (0, [0, 4], {4: [2], 6: [3]}), (9, [], {})])
def test_by_hand(make, chunks, delay, pinned, left):
    """Token j scores 1, 5, 1, 2, 3, 3, 0 by every later token. Two may stay."""
    cache = with_pages(make, dataclasses.replace(CONFIG, int_delay=delay), 2, policy=policies.budget(2))
    q_int, k_int = np.ones((7, 1), np.float32), np.array([[1], [5], [1], [2], [3], [3], [0]], np.float32)
    row, sequence, start, found = np.ones((7, 4), np.float32), cache.new_sequence(), 0, {}
    for count in chunks:
        at = slice(start, start + count)
        batch = cache.reserve([sequence], [count], np.isin(np.arange(start, start + count), pinned))
        _, dropped = cache.step(0, batch, row[at], row[at], row[at], q_int[at], k_int[at], 0.0)
        for by, position in dropped.tolist():
            found.setdefault(by + start, []).append(position)
        start += count
    assert found == left


@pytest.mark.parametrize("backend", BACKENDS)
@given(random_models(), schedules(16), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_a_layer_holds_the_budget_the_delay_itself_and_pins(backend, m, schedule, n, seed):
    assume(m.config.int_n_embd is not None)
    lengths, calls = schedule
    rng, threshold = np.random.default_rng(seed), -np.inf  # scores drop nothing: the budget alone does
    engine = Engine(m, backend, policy=policies.budget(n), threshold=threshold)
    handles, seen, pins = [engine.new_sequence() for _ in lengths], [0] * len(lengths), [0] * len(lengths)
    for call in calls:
        tokens = [rng.integers(0, 11, count) for _, count in call]
        pinned = [rng.random(count) < 0.2 for _, count in call]
        engine.feed([handles[b] for b, _ in call], tokens, pinned=pinned)
        for (b, count), own in zip(call, pinned, strict=True):
            seen[b] += count
            pins[b] += int(own.sum())
            held = engine.live_counts([handles[b]])[:, 0]
            assert (held <= n + m.config.int_delay + 1 + pins[b]).all()
            if not m.config.propagate_in_depth and m.config.int_delay == 0:
                assert (held >= min(n + 1, seen[b])).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("depth", [False, True])
@pytest.mark.parametrize("delay", [0, 5])
def test_a_longer_text(backend, depth, delay):
    """Several pages, rounds of a prompt and threads."""
    model = moderate_model(beta=3.0, propagate_in_depth=depth, int_delay=delay)
    text, pinned = np.random.default_rng(3).integers(0, 300, 120), np.arange(120) % 40 == 0
    policy = policies.budget(34)
    engine = Engine(model, backend, policy=policy)
    sequence = engine.new_sequence()
    engine.feed([sequence], [text[:100]], pinned=[pinned[:100]])
    engine.feed([sequence], [text[100:101]], pinned=[True])
    [got] = engine.feed([sequence], [text[101:]])
    pinned = (pinned & (np.arange(120) < 100)) | (np.arange(120) == 100)
    logits, mask = forward(model.params, text[None], model.config, policy=policy, pinned=pinned)
    np.testing.assert_allclose(got, logits[0, -1], **THEOREM_LOGITS)
    mask = np.cumprod(mask, axis=0) if depth else mask
    for layer in range(2):
        live = engine.live_positions(sequence, layer).tolist()
        assert live == np.flatnonzero(mask[layer, 0, -1]).tolist() and len(live) <= 34 + delay + 1 + 4
    assert (forward(model.params, text[None], model.config, pinned=pinned).interaction[0, 0, -1] > 0).sum() > 34 + 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_of_equal_scores_the_earliest_leave(backend):
    """All scores are 1: a budget is then a window, and every reason is the budget."""
    model = moderate_model()
    params = {name: np.zeros_like(x) if name.endswith(("q_int.weight", "k_int.weight")) else x
              for name, x in model.params.items()}
    for layer in range(2):
        params[f"h.{layer}.attn.int_bias"] = np.ones(1, np.float32)
    model = model._replace(params=params)
    found = trace(model, list(range(60)), policies.budget(8), backend=backend)
    assert (found.left == np.minimum(np.arange(60) + 9, 60)).all()
    assert {REASONS[reason] for reason in found.drops.reason} == {"budget"} and (found.drops.score == 1).all()
