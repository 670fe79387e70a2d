"""What the points of a sweep say: what scoring costs, where pruning pays, and the plot of both."""

from collections.abc import Sequence
from pathlib import Path

from dcp_ref.bench.decoding import Point
from dcp_ref.checkpoints import pictures


def point_at(points: Sequence[Point], context: int, rule: str, share: float = 0.0) -> Point:
    """The one point of that context, rule and share wanted."""
    return next(p for p in points if (p.context, p.rule, p.share_wanted) == (context, rule, share))


def scoring_share(points: Sequence[Point], context: int) -> float:
    """The share of a step that all pruning work costs while nothing is dropped."""
    dense, learned = (point_at(points, context, rule).step_seconds for rule in ("dense", "learned"))
    return 1 - dense / learned


def pays_from(points: Sequence[Point]) -> dict[str, dict[str, int | None]]:
    """For each share dropped, {base: the context from which on a step is faster than the base's}.

    The base "learned" scores and drops nothing, "dense" has no scores. None: not even the longest context is faster.
    """
    shares = sorted({p.share_wanted for p in points} - {0.0})
    return {f"{share:.0%}": {base: _faster_from(points, share, base) for base in ("learned", "dense")}
            for share in shares}


def _faster_from(points: Sequence[Point], share: float, base: str) -> int | None:
    first = None
    for context in sorted({p.context for p in points}, reverse=True):
        if point_at(points, context, "learned", share).step_seconds >= point_at(points, context, base).step_seconds:
            break
        first = context
    return first


def break_even(pays: dict[str, dict[str, int | None]]) -> str:
    """One sentence on `pays_from`: from which context on pruning pays, against a step without scores."""
    found = [f"from {first['dense']} tokens on with {share} dropped" if first["dense"] else
             f"at no length measured with {share} dropped" for share, first in pays.items()]
    return f"On this machine pruning pays {', '.join(found)}."


def columns(points: Sequence[Point]) -> dict[tuple[str, float], str]:
    """(rule, share wanted) and a title, in the order of the points."""
    return {(p.rule, p.share_wanted): "no scores" if p.rule == "dense" else f"{p.share_wanted:.0%} dropped"
            for p in points}


def plot(points: Sequence[Point], path: Path) -> None:
    """Draw tokens/s and cache bytes against the context's length."""
    figure = pictures.new_figure(10, 4)
    speed, size = figure.subplots(1, 2)
    for column, label in columns(points).items():
        line = [p for p in points if (p.rule, p.share_wanted) == column]
        style = "--" if column[0] == "dense" else "-"
        for axes, values in ((speed, [p.tokens_per_second for p in line]), (size, [p.cache_bytes / 1e6 for p in line])):
            axes.plot([p.context for p in line], values, style, marker="o", label=label)
    for axes, name in ((speed, "tokens/s"), (size, "cache, MB")):
        axes.set(xlabel="context, tokens", ylabel=name, ylim=(0, None))
        axes.legend()
    pictures.save(figure, path)
