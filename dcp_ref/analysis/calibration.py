"""How large each rule must be, or at which threshold the learned rule must be, to keep a given share of the context."""

from collections.abc import Callable
from functools import cache

import numpy as np

from dcp_ref import policies
from dcp_ref.checkpoints.weights import Model
from dcp_ref.model import forward
from dcp_ref.native import training as native
from dcp_ref.policies import Policy
from dcp_ref.training.step import share_kept

SPLITS = (1 / 32, 1 / 8, 1 / 4, 1 / 2, 3 / 4)  # tried shares of what a rule keeps outside of its window
CLOSE = 0.03  # a threshold is good enough when the share kept is this close, relative to the share wanted
DOUBLINGS, HALVINGS = 12, 12  # most steps of the search for a threshold

# Each rule, given n, w and T: it keeps the w newest of T tokens, and n others.
RULES: dict[str, Callable[[int, int, int], Policy]] = {
    "window": lambda n, w, T: policies.window(n + w),
    "strided": lambda n, w, T: policies.strided(w, -(-T // n)),
    "sinks": lambda n, w, T: policies.sinks(n, w),
    "heavy_hitters": lambda n, w, T: policies.heavy_hitters(n, w),
}


def kept_rows(policy: Policy, T: int) -> np.ndarray:  # -> int64 [T]
    """How many earlier tokens row i still holds in a context of T, for a rule by position or heavy hitters."""
    i, near = np.arange(T), (policy.window or 1) - 1
    if policy.heavy is not None:
        return np.minimum(i, near + policy.heavy)
    safe = np.append(0, np.cumsum(policy.stays(i + T + near, i)))  # [n]: of the first n tokens, how many always stay
    return np.minimum(i, near) + safe[np.maximum(i - near, 0)]


def share_of(policy: Policy, rows: np.ndarray) -> float:  # [T]
    """The share kept, as a measurement finds it that scores rows[p] rows at position p (perplexity.rows_at)."""
    return float(rows @ kept_rows(policy, len(rows)) / (rows @ np.arange(len(rows))))


def sized(rule: str, share: float, rows: np.ndarray) -> list[Policy]:  # [T]
    """For each of SPLITS, the policy of the rule whose share kept comes closest; each policy once."""
    T, found = len(rows), []
    for split in SPLITS:
        others = [max(1, round(split * size)) for size in range(1, T + 1)]
        made = [RULES[rule](n, max(1, size - n), T) for size, n in enumerate(others, 1)]
        found.append(min(made, key=lambda policy: abs(share_of(policy, rows) - share)))
    return list(dict.fromkeys(found))


def thresholds(model: Model, ids: np.ndarray, shares: tuple[float, ...]) -> list[float]:  # [B, T]
    """For each share, a threshold at which the learned rule keeps about that share of these texts, by `forward`.

    Where no threshold keeps so little or so much, it is one that keeps the least or the most.
    """

    kernels = native.kernels(threads=1)

    @cache
    def kept(threshold: float) -> float:
        return share_kept(forward(model.params, ids, model.config, threshold=threshold, kernels=kernels), model.config)

    return [_bisected(kept, share) for share in shares]


def _bisected(kept: Callable[[float], float], share: float) -> float:
    """A threshold at which `kept`, a falling function of it, is about the share."""
    low = next((-(2.0**n) for n in range(DOUBLINGS) if kept(-(2.0**n)) >= share), -(2.0**DOUBLINGS))
    if share == 1:  # lower still: other texts may have lower scores
        return 2 * low
    high = next((2.0**n for n in range(DOUBLINGS) if kept(2.0**n) <= share), 2.0**DOUBLINGS)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        found = kept(middle)
        if abs(found - share) <= CLOSE * share:
            return middle
        low, high = (middle, high) if found > share else (low, middle)
    return (low + high) / 2
