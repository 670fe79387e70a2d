"""Steering gamma so that a wanted share of the context is kept at alpha = inf.

What is steered is the share itself, measured before each step at alpha = inf, not the soft R: at alpha = 1 the product
of many gates is near 0 where every score is positive. As alpha rises, gates saturate, and what was dropped too early
hardly comes back: so the share wanted falls with the steps, from 1 to the target. What is kept by saturated gates does
not come back under gamma's power either: where a whole layer gets there, gamma ends at its bound, and shows it.
"""

import math
from typing import NamedTuple

SMOOTHING = 0.1  # weight of the newest measurement, which is of one sequence
PROPORTIONAL, INTEGRAL = 4.0, 10.0  # the latter over a whole run, so that it does as much in a short as in a long one
FALL = 0.6  # the target is reached at this share of the steps
BOUND = math.asinh(100)  # gamma is at most 100 times what it began with
LEAST = 1e-3  # of the share wanted: a share of 0 has no logarithm


class Steering(NamedTuple):
    """What one step hands to the next: the smoothed share kept, and asinh(gamma / its first value), the integral."""

    kept: float = 1.0
    level: float = math.asinh(1)


def steer(before: Steering, kept: float, target: float, step: int, steps: int) -> tuple[Steering, float]:
    """The steering after a measurement of the share kept, and what gamma's first value is to be multiplied by.

        error = log(smoothed kept / wanted),   wanted = target ^ (progress of the fall)
        level = sum of INTEGRAL / steps * error,   factor = sinh(level + PROPORTIONAL * error)

    sinh is exponential where it is large, and has a sign: gamma is the Lagrange multiplier of an equation, and keeping
    has to be rewarded where even gamma = 0 would leave less than wanted.
    """
    wanted = target ** min(1.0, step / max(1, FALL * (steps - 1)))
    smooth = before.kept + SMOOTHING * (kept - before.kept)
    error = math.log(max(smooth / wanted, LEAST))
    level = _bounded(before.level + INTEGRAL / steps * error)
    return Steering(smooth, level), math.sinh(_bounded(level + PROPORTIONAL * error))


def _bounded(level: float) -> float:
    return max(-BOUND, min(BOUND, level))
