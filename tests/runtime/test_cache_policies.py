"""Decoding under every policy is the dense forward under it; and heavy hitters by hand."""


import numpy as np
import pytest
from cache_tools import CACHES, any_policies, thresholds, with_pages
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from models import random_models
from theorem_tools import BACKENDS, dense_with
from tolerances import THEOREM_LOGITS

from dcp_ref import Config, Engine
from dcp_ref.policies import heavy_hitters

CONFIG = Config(vocab_size=1, n_positions=9, n_embd=2, n_layer=1, n_head=2)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=200)
@given(random_models(), any_policies(), st.lists(st.integers(1, 5), min_size=1, max_size=6), st.integers(0, 2**32 - 1),
       st.data())
def test_decoding_is_the_dense_forward_under_every_policy(backend, m, policy, chunks, seed, data):
    assume(sum(chunks) <= m.config.n_positions and (m.config.int_n_embd is not None or not policy.learned))
    ids = np.random.default_rng(seed).integers(0, m.config.vocab_size, sum(chunks))
    threshold = data.draw(thresholds(m.config, policy))
    logits, live = dense_with(m, ids, policy, threshold)
    engine, start = Engine(m, backend, policy=policy, threshold=threshold), 0
    sequence = engine.new_sequence()
    for count in chunks:
        [got] = engine.feed([sequence], [ids[start : start + count]], logits="all")
        np.testing.assert_allclose(got, logits[start : start + count], **THEOREM_LOGITS)
        start += count
        for layer in range(m.config.n_layer):
            positions = np.flatnonzero(live[layer, start - 1])
            np.testing.assert_array_equal(engine.live_positions(sequence, layer), positions)


@pytest.mark.parametrize("make", CACHES)
@pytest.mark.parametrize("chunks", [[6], [1] * 6, [2, 4], [5, 1]])
def test_heavy_hitters_by_hand(make, chunks):
    """Each of two heads gives all its attention to one token: the one whose key is largest, or where q = -1 smallest.

    Rows 0 and 1 see token 0, row 2 itself, row 3 token 1 and itself. So before row 4, tokens 0, 1, 2 have 4, 1, 2: its
    own row counts, or 2 would have less than 1. Row 4 sees itself and token 3. Before row 5, tokens 0, 2, 3 have 4, 2,
    2: the later of a tie stays.
    """
    q = np.array([[1, 1], [1, 1], [1, 1], [-1, 1], [-1, 1], [1, 1]], np.float32)
    k = np.array([[0, 0], [-1, -1], [1, 1], [0.5, 2], [-2, 0], [0, 0]], np.float32) * 1e4
    v = np.repeat(np.arange(6, dtype=np.float32)[:, None], 2, axis=1)
    seen = np.array([[0, 0], [0, 0], [2, 2], [1, 3], [4, 3], [3, 3]])
    cache = with_pages(make, CONFIG, 2, policy=heavy_hitters(2, 2))
    sequence, start, left = cache.new_sequence(), 0, []
    for count in chunks:
        rows = slice(start, start + count)
        batch = cache.reserve([sequence], [count])
        out, dropped = cache.step(0, batch, q[rows], k[rows], v[rows])
        np.testing.assert_array_equal(out, seen[rows])
        left += [(start + row, position) for row, position in dropped.tolist()]
        start += count
    assert left == [(4, 1), (5, 2)] and cache.live_positions(sequence, 0).tolist() == [0, 3, 4, 5]
