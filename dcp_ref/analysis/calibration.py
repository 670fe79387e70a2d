"""How large each rule must be, or at which threshold the learned rule must be, to keep a given share of the context."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from dcp_ref import policies
from dcp_ref.analysis.perplexity import evaluate
from dcp_ref.checkpoints.weights import Model
from dcp_ref.model import forward
from dcp_ref.native import training as native
from dcp_ref.policies import Policy
from dcp_ref.runtime.engine import Engine
from dcp_ref.training import data
from dcp_ref.training.step import share_kept

SPLITS = (1 / 32, 1 / 8, 1 / 4, 1 / 2, 3 / 4)  # tried shares of what a rule keeps outside of its window
CLOSE = 0.03  # a threshold is good enough when the share kept is this close, relative to the share wanted
DOUBLINGS, HALVINGS = 12, 16  # most steps of the search for a threshold
CARD_SHARES = (0.8, 0.5, 0.3, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02)
CARD_CLOSE = 0.005  # as CLOSE, for a model's card
CARD_REACHED = 0.02  # a share that no threshold keeps more closely does not get onto the card

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


class Measured(NamedTuple):
    """A share of the context that was wanted, the threshold for it, and what was measured there through the cache."""

    share: float
    threshold: float
    kept: float
    perplexity: float

    @property
    def reached(self) -> bool:
        """Whether the threshold keeps the share."""
        return abs(self.kept - self.share) <= CARD_REACHED * self.share


def card(model: Model, tokens: np.ndarray, shares: Sequence[float] = CARD_SHARES, windows: int = 32, *,
         progress: bool = False) -> list[Measured]:  # [N]
    """The learned rule's threshold for each share, the largest first, on evenly spaced windows of n_positions tokens.

    It is looked for by `forward`, with CARD_CLOSE, and then measured through the cache on the same windows.
    Raises ValueError for a model without a learned rule, shares or windows that cannot be, and too few tokens.
    """
    policies.learned.check(model.config)
    if isinstance(windows, bool) or windows < 1:
        raise ValueError(f"windows must be 1 or more, not {windows}")
    if not shares or not all(0 < share <= 1 for share in shares):
        raise ValueError(f"shares must be above 0 and up to 1, not {list(shares)}")
    context = model.config.n_positions
    if context < 2 or len(tokens) <= context:
        raise ValueError(f"the text has {len(tokens)} tokens, but a window and its last target need {context + 1}: "
                         "give a longer text")
    starts = np.unique(np.linspace(0, len(tokens) - context - 1, windows).astype(int))
    kept, found = Kept(model, data.windows(tokens, starts, context)[0]), []
    for share in tqdm(sorted(set(shares), reverse=True), desc="calibrate", disable=None if progress else True):
        threshold = float(f"{kept.threshold_of(share, CARD_CLOSE):.5g}")
        result = evaluate(Engine(model, threshold=threshold), tokens, starts=starts.tolist())
        found.append(Measured(share, threshold, result.share_kept, result.perplexity))
    return found


def thresholds(model: Model, ids: np.ndarray, shares: Sequence[float]) -> list[float]:  # [B, T]
    """For each share, a threshold at which the learned rule keeps about that share of these texts, by `forward`.

    Where no threshold keeps so little or so much, it is one that keeps the least or the most.
    """
    kept = Kept(model, ids)
    return [kept.threshold_of(share, CLOSE) for share in shares]


class Kept:
    """The share of some texts that the learned rule keeps at a threshold, by `forward`; what was found is `known`."""

    def __init__(self, model: Model, ids: np.ndarray) -> None:  # [B, T]
        self.known: dict[float, float] = {}
        self._model, self._ids, self._kernels = model, ids, native.kernels(threads=1)

    def __call__(self, threshold: float) -> float:
        if threshold not in self.known:
            config, params, _ = self._model
            found = [share_kept(forward(params, row[None], config, threshold=threshold, kernels=self._kernels), config)
                     for row in self._ids]  # one after the other: masks and logits are large
            self.known[threshold] = float(np.mean(found))
        return self.known[threshold]

    def threshold_of(self, share: float, close: float) -> float:
        """A threshold that keeps the share, or `close` to it, relative to the share; else the nearest found."""
        low = next((-(2.0**n) for n in range(DOUBLINGS) if self(-(2.0**n)) >= share), -(2.0**DOUBLINGS))
        if share == 1:  # lower still: other texts may have lower scores
            return 2 * low
        high = next((2.0**n for n in range(DOUBLINGS) if self(2.0**n) <= share), 2.0**DOUBLINGS)
        low = max((t for t in self.known if t < high and self(t) >= share), default=low)
        high = min((t for t in self.known if t > low and self(t) <= share), default=high)
        for n in range(HALVINGS):
            most, least, part = self(low), self(high), 0.5
            if n % 3 < 2 and most > share > least > 0:  # as if the logarithm of the share fell along a line
                part = math.log(most / share) / math.log(most / least)
            middle = low + part * (high - low)
            if abs(self(middle) - share) <= close * share:
                break
            low, high = (middle, high) if self(middle) > share else (low, middle)
        return min(reversed(self.known), key=lambda threshold: abs(self(threshold) - share))
