"""Every drop of a text, and the rule that decided it."""

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dcp_ref.config import float32_threshold
from dcp_ref.runtime.stats import REASONS as REASONS  # what `reason` counts in
from dcp_ref.runtime.stats import besides

if TYPE_CHECKING:
    from dcp_ref.tracing.record import Trace


class Drops(NamedTuple):
    """Each drop of a text, D of them, ordered by dropped_by, layer, position.

    `score` is this layer's own score of the pair, and `margin` = score - threshold, where the policy is learned; else
    both are NaN. `reason` is what decided, an index into REASONS: inherited where an earlier layer dropped the token at
    the same row under propagate_in_depth; else learned where the score is not above the threshold; else the other rule.
    """

    layer: np.ndarray  # int32 [D], as are position and dropped_by
    position: np.ndarray
    dropped_by: np.ndarray
    score: np.ndarray  # float32 [D]
    margin: np.ndarray  # float32 [D]
    reason: np.ndarray  # int8 [D]


def drops_of(trace: "Trace") -> Drops:
    """The drops that the lifetimes of a trace stand for."""
    layer, position, by = rows_that_dropped(trace.lifetime)
    threshold = np.float32(float32_threshold(trace.threshold, trace.policy.learned))
    score = np.full(len(by), np.nan, np.float32)
    reason = np.full(len(by), REASONS.index(besides(trace.policy)), np.int8)
    if trace.policy.learned:
        score = scores_of_pairs(trace, layer, by, position)
        # Alone, nothing but the threshold can have decided, whatever rounding does to a score.
        alone = trace.policy.window is None and trace.policy.budget is None
        judged = by - position > trace.config.int_delay
        reason[judged & (alone | ~(score > threshold))] = REASONS.index("learned")
    if trace.config.propagate_in_depth:
        before = trace.left[layer - 1, position]  # what any earlier layer drops, the one just before drops by then, too
        reason[(layer > 0) & (before == by)] = REASONS.index("inherited")
    with np.errstate(over="ignore"):
        margin = score - threshold
    return Drops(layer, position, by, score, margin, reason)


def left_of(lifetime: np.ndarray) -> np.ndarray:  # [L, T] -> int64 [L, T]
    """The row that dropped each token, T where none did."""
    return np.arange(lifetime.shape[1]) + lifetime


def rows_that_dropped(lifetime: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # [L, T] -> int32 [D] x 3
    """Layer, position and dropped_by of each drop, in the order of Drops."""
    left = left_of(lifetime)
    layer, position = np.nonzero(left < left.shape[1])
    by = left[layer, position]
    order = np.lexsort((position, layer, by))
    return tuple(x[order].astype(np.int32) for x in (layer, position, by))  # type: ignore[return-value]


def scores_of_pairs(trace: "Trace", layer, i, j) -> np.ndarray:  # integers that broadcast to [n] -> float32 [n]
    """s[i, j] of each pair in its layer; the policy must be learned."""
    q, k, beta = trace.scored
    s = np.einsum("...r,...r->...", q[layer, i], k[layer, j]) / np.float32(math.sqrt(q.shape[2]))
    return s + beta[layer]
