"""Long texts in windows, which go through the cache side by side, one token a step; and what each step measures."""

from collections.abc import Generator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

from dcp_ref.analysis.likelihood import nats
from dcp_ref.config import Config
from dcp_ref.runtime.engine import Engine

BATCH_BYTES = 2**30  # most bytes of keys and values that the windows of a batch need if nothing is dropped


class Span(NamedTuple):
    """A window over the rows start .. end - 1; those from `scored` on are scored."""

    start: int
    scored: int
    end: int


class Window(NamedTuple):
    """The tokens of a window, int64 [T + 1]: all but the last are fed. The rows from `scored` on are scored."""

    ids: np.ndarray
    scored: int

    @classmethod
    def of(cls, ids: np.ndarray, span: Span) -> "Window":
        """The window that a span cuts out of a text's token ids, [N]."""
        return cls(ids[span.start : span.end + 1], span.scored - span.start)


class Measured(NamedTuple):
    """What a step measured: the number of tokens fed; and of each of N scored rows the number of its window, its
    position there, its nats, and how many of the earlier tokens each layer still holds, live [L, N]."""

    fed: int
    window: np.ndarray
    position: np.ndarray
    nats: np.ndarray
    live: np.ndarray


def spans(rows: int, context: int, stride: int) -> list[Span]:
    """Windows at 0, stride, 2 * stride, ... over all rows; each scores the rows that no earlier window scored.

    So a row that is scored in a later window has at least context - stride earlier tokens there.
    """
    result = [Span(0, 0, min(context, rows))]
    while result[-1].end < rows:
        start = result[-1].start + stride
        result.append(Span(start, result[-1].end, min(start + context, rows)))
    return result


def batch_of(config: Config, context: int) -> int:
    """The most windows whose keys and values fit in BATCH_BYTES; at least 1 and at most 64."""
    return max(1, min(64, BATCH_BYTES // (context * config.n_layer * 2 * config.n_embd * 4)))


def measured(engine: Engine, windows: Sequence[Window], batch: int) -> Generator[Measured, None, None]:
    """Feed windows, one token of each a step, at most `batch` at once; where one ends, the next one begins.

    Yields what each step measured. A window is released at its end; close the generator to release the others.
    """
    held: dict[int, int] = {}  # the sequence of each window that has begun and not ended
    fed, waiting, L = [0] * len(windows), iter(range(len(windows))), engine.config.n_layer
    try:
        while True:
            for n in islice(waiting, batch - len(held)):
                held[n] = engine.new_sequence()
            if not held:
                return
            running = list(held)
            logits = engine.feed(list(held.values()), [[windows[n].ids[fed[n]]] for n in running])
            rows = [k for k, n in enumerate(running) if fed[n] >= windows[n].scored]
            scored = [running[k] for k in rows]
            targets = np.array([windows[n].ids[fed[n] + 1] for n in scored], np.int64)
            position = np.array([fed[n] for n in scored], np.int64)
            losses = nats(np.stack([logits[k] for k in rows]), targets) if rows else np.zeros(0)
            live = engine.live_counts([held[n] for n in scored]) - 1 if rows else np.zeros((L, 0), np.int64)
            yield Measured(len(running), np.array(scored, np.int64), position, losses, live)
            for n in running:
                fed[n] += 1
                if fed[n] == len(windows[n].ids) - 1:
                    engine.release(held.pop(n))
    finally:
        for sequence in held.values():
            engine.release(sequence)
