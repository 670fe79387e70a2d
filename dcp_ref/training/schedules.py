"""What changes from step to step: the learning rate and alpha. Steps count from 0 to steps - 1."""

import math

ALPHA_START, ALPHA_END = 1.0, 8.0  # as in the paper: logistic gates at first, almost a step at the end
FINAL_RATE = 0.1  # the learning rate ends at this share of its peak


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """A straight line up to `peak` over `warmup` steps, then half a cosine down to a tenth of it at the last step."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return cosine(peak, FINAL_RATE * peak, (step - warmup) / max(1, steps - 1 - warmup))


def alpha(step: int, steps: int, share: float) -> float:
    """The sharpness of alpha_sigmoid: half a cosine from 1 at the first step to 8, at `share` of the steps; then 8."""
    return cosine(ALPHA_START, ALPHA_END, min(1.0, step / max(1, share * (steps - 1))))


def cosine(start: float, end: float, share: float) -> float:
    """Half a cosine from `start` (share 0) to `end` (share 1)."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
