"""The learning rate and alpha of each step. Steps count from 0 to steps - 1."""

import math

import numpy as np

ALPHA_START, ALPHA_END = 1.0, 8.0  # as in the paper: logistic gates at first, almost a step at the end
FINAL_RATE = 0.1  # the learning rate ends at this share of its peak


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Rises in a straight line over `warmup` steps to `peak`, then falls on half a cosine to a tenth of it."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return cosine(peak, FINAL_RATE * peak, (step - warmup) / max(1, steps - 1 - warmup))


def alpha(step: int, steps: int, share: float) -> float:
    """The alpha of the gates: rises on half a cosine from 1 to 8 over this share of the steps, then stays 8."""
    return cosine(ALPHA_START, ALPHA_END, min(1.0, step / max(1, share * (steps - 1))))


def thresholds(low: float, high: float, seed: int, step: int, batch: int) -> np.ndarray:  # -> [B]
    """A threshold for each sequence of a step's batch, uniform from low to high."""
    return np.random.default_rng((seed, step, 1)).uniform(low, high, batch)


def cosine(start: float, end: float, share: float) -> float:
    """The value on half a cosine from `start` (at share 0) to `end` (at share 1)."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
