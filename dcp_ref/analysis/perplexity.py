"""Perplexity and the share of context kept, measured token by token through the cache."""

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from dcp_ref.analysis.windows import Span, Window, batch_of, measured, spans
from dcp_ref.config import Config
from dcp_ref.runtime.engine import Engine

FIRST_BUCKET = 16  # positions of the first bucket; the next ones end at 32, 64, ...


class Evaluation(NamedTuple):
    """Sums over scored rows, indexed by position p in the window (a row at p has p earlier tokens).

    position [T] is p; tokens [T] counts the rows; nats [T] sums their losses; live [L, T] sums the earlier tokens that
    a layer still holds when the row attends to them: after the row's drops.
    """

    position: np.ndarray
    tokens: np.ndarray
    nats: np.ndarray
    live: np.ndarray

    def part(self, first: int, end: int) -> "Evaluation":
        """The sums of the positions first .. end - 1."""
        return Evaluation(*(x[..., first:end] for x in self))

    @property
    def nats_per_token(self) -> float:
        return float(self.nats.sum() / self.tokens.sum())

    @property
    def perplexity(self) -> float:
        """exp(nats per token), at most e^700."""
        return math.exp(min(self.nats_per_token, 700.0))

    @property
    def layers_kept(self) -> list[float]:
        """For each layer, the mean of the mask in force over pairs j < i with a scored row i; 1 if there is no pair."""
        pairs = int(self.position @ self.tokens)
        return [int(live) / pairs if pairs else 1.0 for live in self.live.sum(-1)]

    @property
    def share_kept(self) -> float:
        """The mean of layers_kept."""
        return math.fsum(self.layers_kept) / len(self.live)

    def bits_per_byte(self, n_bytes: int) -> float | None:
        """The loss in bits, divided by the bytes of text that the scored tokens stand for; None for 0 bytes."""
        return float(self.nats.sum()) / math.log(2) / n_bytes if n_bytes else None


def check_windows(config: Config, tokens: np.ndarray, context: int | None, stride: int | None) -> tuple[int, int]:
    """The context (default: n_positions) and the stride (default: the context).

    Raises ValueError unless 2 <= context <= n_positions, 1 <= stride <= context, and there are three tokens: with
    fewer, no scored row has an earlier token.
    """
    context = config.n_positions if context is None else context
    stride = context if stride is None else stride
    if not 2 <= context <= config.n_positions:
        raise ValueError(f"context must be from 2 to n_positions ({config.n_positions}), not {context}")
    if isinstance(stride, bool) or not 1 <= stride <= context:
        raise ValueError(f"stride must be from 1 to the context ({context}), not {stride}")
    if len(tokens) < 3:
        raise ValueError(f"the text has {len(tokens)} tokens: at least 3 are needed")
    return context, stride


def rows_at(n_tokens: int, context: int, stride: int) -> np.ndarray:  # -> int64 [T]
    """How many rows are scored at each position of a window, for a text of n_tokens."""
    count = np.zeros(min(context, n_tokens - 1), np.int64)
    for span in spans(n_tokens - 1, context, stride):
        count[span.scored - span.start : span.end - span.start] += 1
    return count


def evaluate(engine: Engine, tokens: np.ndarray, context: int | None = None, stride: int | None = None, *,
             batch: int | None = None, progress: str | None = None, starts: Sequence[int] | None = None) -> Evaluation:
    """Feed a text [N] through the cache in windows (`spans`), one token a step, `batch` windows at once.

    Row i predicts token i + 1. The result equals that of the dense forward with the engine's policy over each window.
    With `starts`, windows begin there alone, and all their rows are scored.
    `progress` is the title of a progress bar, shown if stderr is a terminal; None for no bar.
    Raises ValueError as `check_windows` and Engine.feed do.
    """
    context, stride = check_windows(engine.config, tokens, context, stride)
    batch = batch_of(engine.config, context) if batch is None else batch
    if isinstance(batch, bool) or batch < 1:
        raise ValueError(f"batch must be 1 or more, not {batch}")
    todo = spans(len(tokens) - 1, context, stride) if starts is None else [Span(n, n, n + context) for n in starts]
    if not todo or not all(0 <= span.start <= span.end < len(tokens) for span in todo):
        raise ValueError(f"starts must be from 0 to {len(tokens) - 1 - context}, for windows of {context} rows")
    ids, T, L = tokens.astype(np.int64), todo[0].end - todo[0].start, engine.config.n_layer
    windows = [Window.of(ids, span) for span in todo]
    total = Evaluation(np.arange(T), np.zeros(T, np.int64), np.zeros(T), np.zeros((L, T), np.int64))
    rows = sum(span.end - span.start for span in todo)
    with (tqdm(total=rows, unit=" tokens", desc=progress, disable=True if progress is None else None) as bar,
          closing(measured(engine, windows, batch)) as steps):
        for step in steps:
            np.add.at(total.tokens, step.position, 1)
            np.add.at(total.nats, step.position, step.nats)
            np.add.at(total.live.T, step.position, step.live.T)
            bar.update(step.fed)
    return total


def buckets(evaluation: Evaluation) -> Iterator[tuple[int, int, Evaluation]]:
    """(first, last, sums) of the positions 0 .. 15, 16 .. 31, 32 .. 63, ..., where a row was scored."""
    first, end, T = 0, FIRST_BUCKET, len(evaluation.tokens)
    while first < T:
        part = evaluation.part(first, min(end, T))
        if part.tokens.any():
            yield first, min(end, T) - 1, part
        first, end = end, 2 * end


def report(evaluation: Evaluation, n_bytes: int) -> dict[str, Any]:
    """All measurements, in types that JSON can hold."""
    positions = [{"first": first, "last": last, "tokens": int(part.tokens.sum()), "perplexity": part.perplexity,
                  "share_kept": part.share_kept} for first, last, part in buckets(evaluation)]
    return {"tokens": int(evaluation.tokens.sum()), "bytes": n_bytes, "perplexity": evaluation.perplexity,
            "nats_per_token": evaluation.nats_per_token, "bits_per_byte": evaluation.bits_per_byte(n_bytes),
            "share_kept": evaluation.share_kept, "layers_kept": evaluation.layers_kept, "positions": positions}
