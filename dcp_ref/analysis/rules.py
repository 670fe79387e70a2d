"""The sizes at which each rule keeps a share of the context that is asked for."""

from collections.abc import Callable
from functools import cache

import numpy as np

from dcp_ref.model import forward
from dcp_ref.runtime import policies
from dcp_ref.runtime.policies import Policy
from dcp_ref.training.step import share_kept
from dcp_ref.weights import Model

SINKS = 4  # as in StreamingLLM
CLOSE = 0.03  # of the share asked for: near enough for a threshold
DOUBLINGS, HALVINGS = 12, 12  # of the search for one

# A rule of size w, for a context T: strided and heavy hitters spend half on the window.
RULES: dict[str, Callable[[int, int], Policy]] = {
    "window": lambda w, T: policies.window(w),
    "strided": lambda w, T: policies.strided(w, -(-T // w)),
    "sinks": lambda w, T: policies.sinks(SINKS, w),
    "heavy_hitters": lambda w, T: policies.heavy_hitters(w // 2, w - w // 2),
}


def kept_rows(policy: Policy, T: int) -> np.ndarray:  # -> int64 [T]
    """How many earlier tokens row i still has, in a context of T, by the rules of position and heavy hitters alone."""
    i = np.arange(T)
    if policy.heavy is not None and policy.window is not None:  # those that are near, and n of the others
        return np.minimum(i, policy.window - 1 + policy.heavy)
    return np.tril(policy.stays(i[:, None], i), -1).sum(-1)


def share_of(policy: Policy, rows: np.ndarray) -> float:  # [T]
    """The share kept that a measurement finds which scores rows[p] rows at position p (perplexity.rows_at)."""
    return float(rows @ kept_rows(policy, len(rows)) / (rows @ np.arange(len(rows))))


def sized(rule: str, shares: tuple[float, ...], rows: np.ndarray) -> list[Policy]:  # [T]
    """For each share the policy of that rule which keeps as nearly as it can so much; of two as near, the smaller."""
    T = len(rows)
    kept = {policy: share_of(policy, rows) for policy in (RULES[rule](w, T) for w in range(1, T + 1))}
    return [min(kept, key=lambda policy: abs(kept[policy] - share)) for share in shares]


def thresholds(model: Model, ids: np.ndarray, shares: tuple[float, ...]) -> list[float]:  # [B, T]
    """For each share a threshold at which the learned rule keeps about so much of these texts, by the dense forward.

    Where it cannot keep as little, or as much, as is asked, the threshold is one that keeps the least, or the most.
    """

    @cache
    def kept(threshold: float) -> float:
        return share_kept(forward(model.params, ids, model.config, threshold=threshold), model.config)

    return [_bisected(kept, share) for share in shares]


def _bisected(kept: Callable[[float], float], share: float) -> float:
    """A threshold at which `kept`, which falls as it rises, is about the share."""
    low = next((-(2.0**n) for n in range(DOUBLINGS) if kept(-(2.0**n)) >= share), -(2.0**DOUBLINGS))
    if share == 1:  # other texts may have lower scores
        return 2 * low
    high = next((2.0**n for n in range(DOUBLINGS) if kept(2.0**n) <= share), 2.0**DOUBLINGS)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        found = kept(middle)
        if abs(found - share) <= CLOSE * share:
            return middle
        low, high = (middle, high) if found > share else (low, middle)
    return (low + high) / 2
