"""The plot of a sweep: perplexity against the share of context kept."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dcp_ref.analysis.sweep import BY_MODEL, LEARNED, Point
from dcp_ref.checkpoints import pictures
from dcp_ref.checkpoints.inputs import shown

TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)  # percent
STYLES = {  # label, colour, marker: the colours of Okabe and Ito, which colour-blind people can tell apart
    LEARNED: ("learned, by threshold", "#0072B2", "o"),
    BY_MODEL: ("learned, by model", "#56B4E9", "D"),
    "window": ("window", "#D55E00", "s"),
    "strided": ("strided", "#E69F00", "^"),
    "sinks": ("sinks + window", "#009E73", "v"),
    "heavy_hitters": ("heavy hitters + window", "#CC79A7", "P"),
}


def plot(points: Sequence[Point], path: Path, title: str) -> None:
    """One line for each rule; the dense model, which keeps everything, is a horizontal line."""
    figure = pictures.new_figure(9, 5)
    axes = figure.subplots()
    for rule in STYLES:
        _line(axes, rule, points)
    for p in points:
        if p.rule == "dense":
            axes.axhline(p.perplexity, color="0.35", linestyle="--", linewidth=1.2, label=f"dense: {p.perplexity:.1f}")
    lowest = min((p.share_kept for p in points if p.share_kept > 0), default=0.01)
    axes.set_title(shown(title), parse_math=False)  # a model's name may hold $
    axes.set(xlabel="context kept, %", ylabel="perplexity, a token", xscale="log", xlim=(lowest * 80, 125))
    axes.set_xticks([x for x in TICKS if x >= lowest * 80])
    axes.minorticks_off()
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_axisbelow(True)
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    pictures.save(figure, path, dpi=150)


def _line(axes: Any, rule: str, points: Sequence[Point]) -> None:
    label, colour, marker = STYLES[rule]
    line = sorted((p.share_kept * 100, p.perplexity) for p in points if p.rule == rule and p.share_kept > 0)
    if line:
        x, y = zip(*line, strict=True)
        width = 2.2 if rule in (LEARNED, BY_MODEL) else 1.4
        axes.plot(x, y, color=colour, marker=marker, label=label, linewidth=width, markersize=6, zorder=width)
