"""What a cache holds and has dropped, in numbers."""

from typing import NamedTuple

import numpy as np

from dcp_ref.policies import Policy

REASONS = ("learned", "inherited", "window", "heavy", "budget", "rule")  # what decides a drop


class Stats(NamedTuple):
    """Totals over layers and sequences.

    Forks share memory: bytes_owned counts it once, bytes_logical (and live_tokens, slots) once for each sequence.
    bytes_peak is the largest bytes_owned so far. bytes_reserved includes free pages; bytes_scratch is working memory,
    sized for the largest step so far.
    dropped: for each layer, how many tokens all steps so far have dropped, by reason: the learned score, the layer
    before (inherited), a window, heavy hitters, a budget or a rule of one's own. Steps of a feed that failed count too.
    """

    live_tokens: int
    slots: int
    bytes_owned: int
    bytes_reserved: int
    bytes_scratch: int = 0
    bytes_logical: int = 0
    bytes_peak: int = 0
    dropped: tuple[dict[str, int], ...] = ()


def besides(policy: Policy) -> str:
    """The reason, besides the learned score, for which a policy drops."""
    return "rule" if policy.rule else "budget" if policy.budget else "heavy" if policy.heavy else "window"


def by_reason(counts: np.ndarray) -> tuple[dict[str, int], ...]:  # [L, reasons]
    """Stats.dropped; reasons that dropped nothing are left out."""
    return tuple({name: n for name, n in zip(REASONS, layer, strict=False) if n} for layer in counts.tolist())
