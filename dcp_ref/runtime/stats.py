"""What a cache holds and has dropped, in numbers."""

from typing import NamedTuple

from dcp_ref.policies import Policy

REASONS = ("learned", "inherited", "window", "heavy", "budget", "rule")  # what decides a drop


class Stats(NamedTuple):
    """Totals over layers and sequences.

    Forks share memory: bytes_owned counts it once, bytes_logical (and live_tokens, slots) once for each sequence.
    bytes_peak is the largest bytes_owned so far. bytes_reserved includes free pages; bytes_scratch is working memory,
    sized for the largest step so far.
    drops: for each layer, how many tokens all steps so far have dropped for each of REASONS; `dropped` has their names.
    """

    live_tokens: int
    slots: int
    bytes_owned: int
    bytes_reserved: int
    bytes_scratch: int = 0
    bytes_logical: int = 0
    bytes_peak: int = 0
    drops: tuple[tuple[int, ...], ...] = ()

    @property
    def dropped(self) -> tuple[dict[str, int], ...]:
        """For each layer, how many tokens all steps so far have dropped, by the reasons that dropped some.

        Reasons: the learned score, the layer before (inherited), a window, heavy hitters, a budget, a rule of one's
        own. Steps of a feed that failed count too.
        """
        return tuple({name: n for name, n in zip(REASONS, layer, strict=False) if n} for layer in self.drops)


def besides(policy: Policy) -> str:
    """The reason, besides the learned score, for which a policy drops."""
    return "rule" if policy.rule else "budget" if policy.budget else "heavy" if policy.heavy else "window"
