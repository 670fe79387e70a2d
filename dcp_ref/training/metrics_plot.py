"""A picture of a run: what is in metrics.jsonl, over its steps."""

from pathlib import Path
from typing import Any

from dcp_ref.checkpoints import files
from dcp_ref.checkpoints.inputs import shown
from dcp_ref.training.run_files import METRICS, PLOT, TrainingError, load_metrics

FAINT = {"color": "tab:blue", "alpha": 0.3, "linewidth": 0.8}
MEASURED = {"color": "tab:orange", "marker": "o", "markersize": 3}
MARK = {"color": "black", "linestyle": ":", "linewidth": 1}


def check() -> None:
    """Raises ValueError without a matplotlib that works."""
    try:
        import matplotlib.backends.backend_agg  # what savefig needs
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ValueError(f'plot: matplotlib cannot be imported ({error}): pip install "matplotlib>=3.8", '
                         "or go on without plot") from None


def draw(directory: Path, target_kept: float | None) -> None:
    """Write metrics.png beside metrics.jsonl: a panel for each number that the run has. Raises TrainingError."""
    from matplotlib.figure import Figure  # an optional dependency

    rows = load_metrics(directory)
    if not rows:
        raise TrainingError(f"{directory / METRICS} is missing or empty: there is nothing to draw, go on without plot")
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    loss, perplexity, kept, alpha, gamma, rate = figure.subplots(2, 3, sharex=True).flat
    figure.suptitle(shown(directory.resolve().name), parse_math=False)  # a name may hold $
    _line(loss, rows, "cross_entropy", **FAINT)
    loss.plot(*_smoothed(rows, "cross_entropy"), color="tab:blue", label="cross-entropy, smoothed")
    _line(loss, rows, "distillation", color="tab:green", linewidth=0.8, label="KL from the teacher")
    _line(perplexity, rows, "valid_perplexity", **MEASURED)
    _line(kept, rows, "sparsity", **FAINT, label="R, of the training gates")
    _line(kept, rows, "share_kept", **MEASURED, label="validation, alpha = inf")
    if target_kept is not None:
        kept.axhline(target_kept, **MARK, label="wanted")
    for axes, name in ((alpha, "alpha"), (gamma, "gamma"), (rate, "learning_rate")):
        _line(axes, rows, name, color="tab:blue")
    titles = ("loss, nats a token", "validation perplexity", "share kept", "alpha", "gamma", "learning rate")
    for axes, title in zip((loss, perplexity, kept, alpha, gamma, rate), titles, strict=True):
        _finish(axes, title)
    kept.set_ylim(0, 1.03)
    for axes in (alpha, gamma, rate):
        axes.set_xlabel("step")
    with files.replacing(directory) as temporary:
        figure.savefig(temporary / PLOT, dpi=120)


def _line(axes: Any, rows: list[dict[str, float]], name: str, **style: Any) -> None:
    points = [(row["step"], row[name]) for row in rows if name in row]
    if points:
        axes.plot(*zip(*points, strict=True), **style)


def _smoothed(rows: list[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    """Steps, and running means over a twentieth of the rows."""
    width, total, means = max(1, len(rows) // 20), 0.0, []
    for i, row in enumerate(rows):
        total += row[name] - (rows[i - width][name] if i >= width else 0)
        means.append(total / min(i + 1, width))
    return [row["step"] for row in rows], means


def _finish(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8)
    if not axes.lines:
        axes.text(0.5, 0.5, "nothing is dropped", transform=axes.transAxes, ha="center", color="grey")
        axes.set_yticks([])
