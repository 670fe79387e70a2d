"""The plot of a sweep. Needs matplotlib: the extra `plot`."""

from collections.abc import Sequence
from pathlib import Path

from dcp_ref.analysis.sweep import BY_MODEL, LEARNED, Point
from dcp_ref.checkpoints import files
from dcp_ref.checkpoints.inputs import shown

REMEDY = 'pip install "dcp-ref[plot]"'  # without matplotlib
STYLES = {  # label, colour, marker: colours of Okabe and Ito, which all can tell apart
    LEARNED: ("learned, by threshold", "#0072B2", "o"),
    BY_MODEL: ("learned, by model", "#56B4E9", "D"),
    "window": ("window", "#D55E00", "s"),
    "strided": ("strided", "#E69F00", "^"),
    "sinks": ("sinks + window", "#009E73", "v"),
    "heavy_hitters": ("heavy hitters + window", "#CC79A7", "P"),
}


def have_matplotlib() -> bool:
    """Whether it can be imported, which is more than being there."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def check_matplotlib() -> None:
    """Raises ValueError when it is missing."""
    if not have_matplotlib():
        raise ValueError(f"matplotlib is missing, and --out draws a plot: {REMEDY}")


def plot(points: Sequence[Point], path: Path, title: str) -> None:
    """Perplexity against the share kept, a line a rule; dense is horizontal."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for rule, (label, colour, marker) in STYLES.items():
        line = sorted((p.share_kept * 100, p.perplexity) for p in points if p.rule == rule and p.share_kept > 0)
        if line:
            x, y = zip(*line, strict=True)
            wide = 2.2 if rule in (LEARNED, BY_MODEL) else 1.4
            axes.plot(x, y, color=colour, marker=marker, label=label, linewidth=wide, markersize=6, zorder=wide)
    for p in points:
        if p.rule == "dense":
            axes.axhline(p.perplexity, color="0.35", linestyle="--", linewidth=1.2, label=f"dense: {p.perplexity:.1f}")
    lowest = min((p.share_kept for p in points if p.share_kept > 0), default=0.01)
    axes.set_xscale("log")
    axes.set(xlabel="context kept, %", ylabel="perplexity, a token", xlim=(lowest * 80, 125))
    axes.set_title(shown(title), parse_math=False)  # a model's name may hold $
    axes.set_xticks([x for x in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if x >= lowest * 80])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="minor", length=0)
    axes.set_axisbelow(True)
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    with files.replacing(path.parent) as temporary:  # a failure leaves an older picture as it was
        figure.savefig(temporary / path.name, dpi=150)
