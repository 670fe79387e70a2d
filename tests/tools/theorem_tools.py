"""What the tests of the theorem share: backends, random schedules, and the dense forward that decoding must equal."""

import math

import numpy as np
import pytest
from hypothesis import assume
from hypothesis import strategies as st
from tolerances import SCORE_MARGIN, THEOREM_LOGITS

from dcp_ref import Engine, Model, block, forward, native
from dcp_ref.policies import Policy

THRESHOLDS = [0.0, 0.0, -1.0, 0.1, 1, np.float32(2), math.inf, -math.inf]
BACKENDS = ["numpy", "native"] if native.available() else ["numpy"]


@st.composite
def schedules(draw, n_positions):
    """Texts' lengths, and calls: each a list of (sequence, tokens) with distinct sequences, until all are fed."""
    left = draw(st.lists(st.integers(1, n_positions), min_size=1, max_size=4))
    lengths, calls = list(left), []
    while any(left):
        order = draw(st.permutations([b for b, n in enumerate(left) if n]))
        order = order[: draw(st.integers(1, len(order)))]
        calls.append([(b, draw(st.integers(1, left[b]) | st.just(1))) for b in order])
        for b, n in calls[-1]:
            left[b] -= n
    return lengths, calls


def close(backend, got, expected):
    """Asserts that two decodings agree: in C to the bit, in NumPy to rounding."""
    np.testing.assert_allclose(got, expected, **({"rtol": 0} if backend == "native" else THEOREM_LOGITS))


def alone(model, backend, *chunks):
    """The last logits of one sequence that was fed these lists of tokens, in an engine of its own."""
    engine = Engine(model, backend)
    sequence = engine.new_sequence()
    return [engine.feed([sequence], [chunk])[0] for chunk in chunks][-1]


def judged_margins(config, s, threshold):  # [B, T, T] -> [pairs]
    """How close each score that decides is to the threshold."""
    T = s.shape[-1]
    return np.abs(s[..., np.tri(T, k=-1 - min(config.int_delay, T), dtype=bool)] - threshold).ravel()


def choice_margins(policy, i, position, attention, kept, s, delay, gone):
    """How close it was between the last token that a policy's `drops` drops for another's sake, and that other."""
    if policy.budget is not None:
        value, counted = s, (i - position > delay) & ~np.broadcast_to(kept, position.shape)
    else:
        value, counted = attention, ~(policy.stays(i, position) | kept)
    return [value[counted & ~gone].min() - value[gone].max()] if gone.any() and not gone[counted].all() else []


def dense_with(m: Model, ids, policy=None, threshold=0.0, pinned=None):
    # [T], bool [T] -> logits [T, V], live [L, T, T]
    """The dense forward; rejects the example when a decision is so close that rounding may make it otherwise."""
    margins = []
    plain_scores, plain_drops = block.scores, Policy.drops

    def scores(*args):
        s, saved = plain_scores(*args)
        margins.extend(judged_margins(m.config, s, threshold))
        return s, saved

    def drops(self, i, position, attention, kept=False, s=None, delay=0):
        gone = plain_drops(self, i, position, attention, kept, s, delay)
        margins.extend(choice_margins(self, i, position, attention, kept, s, delay, gone))
        return gone

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block, "scores", scores)
        patch.setattr(Policy, "drops", drops)
        logits, mask = forward(m.params, ids[None], m.config, policy=policy, threshold=threshold, pinned=pinned)
    assume(min(margins, default=1) > SCORE_MARGIN)
    mask = np.cumprod(mask, axis=0) if m.config.propagate_in_depth else mask
    return logits[0], (mask[:, 0] > 0) & np.tri(len(ids), dtype=bool)
