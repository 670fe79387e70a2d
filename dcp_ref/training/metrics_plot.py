"""The picture of a training run: the numbers in metrics.jsonl over its steps."""

from pathlib import Path
from typing import Any

from dcp_ref.checkpoints import pictures
from dcp_ref.checkpoints.inputs import shown
from dcp_ref.training.run_files import METRICS, PLOT, TrainingError, load_metrics

FAINT = {"color": "tab:blue", "alpha": 0.3, "linewidth": 0.8}
MEASURED = {"color": "tab:orange", "marker": "o", "markersize": 3}
MARK = {"color": "black", "linestyle": ":", "linewidth": 1}
TITLES = ("loss, nats a token", "validation perplexity", "share kept", "alpha", "gamma", "learning rate")


def check() -> None:
    """Raises ValueError where nothing can be drawn."""
    problem = pictures.unavailable()
    if problem:
        raise ValueError(f"plot: {problem}, or go on without plot")


def draw(directory: Path, target_kept: float | None) -> None:
    """Write metrics.png beside metrics.jsonl: a panel for each number that the run has. Raises TrainingError."""
    rows = load_metrics(directory)
    if not rows:
        raise TrainingError(f"{directory / METRICS} is missing or empty: there is nothing to draw, go on without plot")
    figure = pictures.new_figure(12, 6.5)
    figure.suptitle(shown(directory.resolve().name), parse_math=False)  # a name may hold $
    panels = list(figure.subplots(2, 3, sharex=True).flat)
    loss, perplexity, kept, *schedules = panels
    _line(loss, rows, "cross_entropy", **FAINT)
    loss.plot(*_smoothed(rows, "cross_entropy"), color="tab:blue", label="cross-entropy, smoothed")
    _line(loss, rows, "distillation", color="tab:green", linewidth=0.8, label="KL from the teacher")
    _line(perplexity, rows, "valid_perplexity", **MEASURED)
    _line(kept, rows, "sparsity", **FAINT, label="R, of the training gates")
    _line(kept, rows, "share_kept", **MEASURED, label="validation, alpha = inf")
    if target_kept is not None:
        kept.axhline(target_kept, **MARK, label="target")
    for axes, name in zip(schedules, ("alpha", "gamma", "learning_rate"), strict=True):
        _line(axes, rows, name, color="tab:blue")
        axes.set_xlabel("step")
    for axes, title in zip(panels, TITLES, strict=True):
        _finish(axes, title)
    kept.set_ylim(0, 1.03)
    pictures.save(figure, directory / PLOT)


def _line(axes: Any, rows: list[dict[str, float]], name: str, **style: Any) -> None:
    points = [(row["step"], row[name]) for row in rows if name in row]
    if points:
        axes.plot(*zip(*points, strict=True), **style)


def _smoothed(rows: list[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    """The steps, and at each the mean of the last twentieth of the rows."""
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
