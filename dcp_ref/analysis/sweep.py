"""Perplexity against the share of context kept: the learned rule beside rules that need no training."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from dcp_ref import policies
from dcp_ref.analysis import calibration
from dcp_ref.analysis.perplexity import check_windows, evaluate, rows_at
from dcp_ref.analysis.table import markdown, percent
from dcp_ref.checkpoints.weights import Model
from dcp_ref.runtime.engine import Engine
from dcp_ref.training import data

SHARES = (0.5, 0.2, 0.1, 0.05)  # kept by the fixed rules
LEARNED_SHARES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
CALIBRATION_WINDOWS = 2  # windows of the text on which thresholds are looked for
SPLIT_WINDOWS = 8  # windows of the text on which a fixed rule's splits are tried
LEARNED, BY_MODEL = "learned", "learned, by model"


class Run(NamedTuple):
    """One evaluation to make."""

    rule: str  # the line of the plot
    name: str  # the model's
    model: Model
    policy: policies.Policy
    threshold: float = 0.0


class Point(NamedTuple):
    """The result of a Run."""

    rule: str
    model: str
    policy: str
    threshold: float
    share_kept: float
    perplexity: float
    nats_per_token: float
    bits_per_byte: float | None


class Sweep(NamedTuple):
    """What to compare: models with their names.

    `learned` gets a curve over `thresholds` (None: those that keep LEARNED_SHARES), each of `others` a point at
    threshold 0. `base` gets the dense line and the fixed rules.
    """

    learned: tuple[str, Model] | None
    others: Sequence[tuple[str, Model]]
    base: tuple[str, Model]
    thresholds: Sequence[float] | None = None

    @property
    def pruned(self) -> list[tuple[str, Model]]:
        """All models but the base."""
        return [*([self.learned] if self.learned else []), *self.others]

    def check(self, context: int) -> None:
        """Raises ValueError for a threshold that is not finite, and for a pruned model that has no learned rule or
        fewer positions than the context."""
        for threshold in self.thresholds or ():
            if not math.isfinite(threshold):
                raise ValueError(f"thresholds must be finite, not {threshold}: the dense line is what -inf would give")
        for name, model in self.pruned:
            if model.config.int_n_embd is None:
                raise ValueError(f"{name} has no interaction weights, so no learned rule to sweep: give it as --dense, "
                                 "or train them with dcp-ref train --prune")
            if model.config.n_positions < context:
                raise ValueError(f"context is {context}, but {name} has {model.config.n_positions} positions: "
                                 "give a smaller --context")


def runs(sweep: Sweep, tokens: np.ndarray, context: int, stride: int, progress: bool = False,
         **options: Any) -> list[Run]:
    """All evaluations of a sweep, dense first. A fixed rule is split in the way that gives the lowest perplexity."""
    sweep.check(context)
    result = [Run("dense", *sweep.base, policies.dense)]
    if sweep.learned is not None:
        found = _thresholds(sweep.learned[1], tokens, context) if sweep.thresholds is None else sweep.thresholds
        result += [Run(LEARNED, *sweep.learned, policies.learned, t) for t in sorted({0.0, *found})]
    result += [Run(BY_MODEL, name, model, policies.learned) for name, model in sweep.others]
    rows = rows_at(len(tokens), context, stride)
    few = tokens[: SPLIT_WINDOWS * context + 1]

    def tried(policy: policies.Policy) -> float:
        engine, title = Engine(sweep.base[1], policy=policy, **options), f"trying {policy}" if progress else None
        return evaluate(engine, few, context, stride, progress=title).perplexity

    for rule in calibration.RULES:
        ways = [calibration.sized(rule, share, rows) for share in SHARES]
        best = [min(made, key=tried) if len(made) > 1 else made[0] for made in ways]
        result += [Run(rule, *sweep.base, policy) for policy in dict.fromkeys(best)]  # two shares may share one
    return result


def _thresholds(model: Model, tokens: np.ndarray, context: int) -> list[float]:
    context = min(context, len(tokens) - 1)
    starts = np.unique(np.linspace(0, len(tokens) - context - 1, CALIBRATION_WINDOWS).astype(int))
    return calibration.thresholds(model, data.windows(tokens, starts, context)[0], LEARNED_SHARES)


def measure(sweep: Sweep, tokens: np.ndarray, n_bytes: int, context: int | None = None, stride: int | None = None, *,
            progress: bool = False, **options: Any) -> list[Point]:
    """Evaluate every run of the sweep over tokens [N], which stand for n_bytes of text; `options` are Engine's.

    Raises ValueError as `check_windows`, `Sweep.check` and Engine do.
    """
    context, stride = check_windows(sweep.base[1].config, tokens, context, stride)
    todo, points = runs(sweep, tokens, context, stride, progress, **options), []
    for n, run in enumerate(todo, 1):
        engine = Engine(run.model, policy=run.policy, threshold=run.threshold, **options)
        title = f"{n} of {len(todo)}: {run.policy}" if progress else None
        found = evaluate(engine, tokens, context, stride, progress=title)
        points.append(Point(run.rule, run.name, str(run.policy), run.threshold, found.share_kept, found.perplexity,
                            found.nats_per_token, found.bits_per_byte(n_bytes)))
    return points


def report(points: Sequence[Point]) -> str:
    """A table in Markdown with a line for each point; the points of a rule are sorted by share kept."""
    order = list(dict.fromkeys(point.rule for point in points))
    rows = [(p.rule, p.model, f"{p.threshold:.4g}" if p.policy == "learned" else p.policy, percent(p.share_kept),
             f"{p.perplexity:.2f}", "" if p.bits_per_byte is None else f"{p.bits_per_byte:.4f}")
            for p in sorted(points, key=lambda p: (order.index(p.rule), -p.share_kept))]
    return markdown(["rule", "model", "policy, or threshold", "kept", "perplexity", "bits a byte"], rows, left=3)
