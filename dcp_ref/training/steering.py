"""Steering gamma so that a given share of the context, the target, is kept at alpha = inf.

The share is measured at alpha = inf before each step. The soft R would mislead: at alpha = 1 the product of many gates
is near 0 even where every score is positive. A saturated gate has no gradient, so a token dropped too early is hard to
regain: the share wanted therefore falls from 1 to the target over the steps. Gates saturated at 1 cannot be closed by
gamma either: if a whole layer saturates, gamma runs to its bound.
"""

import math
from typing import NamedTuple

SMOOTHING = 0.1  # weight of the newest measurement, which is noisy: it is of one sequence
PROPORTIONAL, INTEGRAL = 4.0, 10.0  # INTEGRAL is for a whole run, so that short and long runs are steered alike
FALL = 0.6  # the share wanted reaches the target at this share of the steps
BOUND = math.asinh(100)  # gamma is at most 100 times its first value
LEAST = 1e-3  # smallest kept / wanted, as 0 has no logarithm


class Steering(NamedTuple):
    """What one step hands to the next: the smoothed share kept, and the integral, asinh(gamma / its first value)."""

    kept: float = 1.0
    level: float = math.asinh(1)


def steer(before: Steering, kept: float, target: float, step: int, steps: int) -> tuple[Steering, float]:
    """The new Steering after a measurement of the share kept, and the factor of gamma's first value.

        error = log(smoothed kept / wanted),   wanted = target ^ (progress of the fall)
        level = sum of INTEGRAL / steps * error,   factor = sinh(level + PROPORTIONAL * error)

    sinh makes gamma change by factors where it is large, and lets it change its sign: where even gamma = 0 keeps less
    than wanted, keeping must be rewarded.
    """
    wanted = target ** min(1.0, step / max(1, FALL * (steps - 1)))
    smooth = before.kept + SMOOTHING * (kept - before.kept)
    error = math.log(max(smooth / wanted, LEAST))
    level = _bounded(before.level + INTEGRAL / steps * error)
    return Steering(smooth, level), math.sinh(_bounded(level + PROPORTIONAL * error))


def _bounded(level: float) -> float:
    return max(-BOUND, min(BOUND, level))
