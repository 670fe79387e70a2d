"""From a text, or a generated one, to its Trace: what the cache dropped, as it says itself."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from dcp_ref.checkpoints.weights import Model
from dcp_ref.policies import Policy
from dcp_ref.runtime.engine import Engine
from dcp_ref.runtime.generation import Dropped, Prompt, prompt_ids
from dcp_ref.runtime.pins import Pin, prompt_pins
from dcp_ref.runtime.row import Row
from dcp_ref.tracing.pieces import pieces
from dcp_ref.tracing.record import Trace


def trace(model: Model, text_or_ids: Prompt, policy: Policy | None = None, threshold: float = 0.0,
          backend: str | None = None, scores: bool = False, pinned: Pin | None = None,
          kept: float | None = None) -> Trace:
    """Who drops whom as this text, or these token ids, go through the cache: the arguments are Engine's.

    `scores`: whether files and pages of the trace hold interaction queries and keys too; that needs a learned policy.
    `pinned`: the tokens that no rule drops: a bool for each token; or, as the `pin` of `generate`, a text that this one
    begins with, or (start, end) pairs of positions.
    Raises ValueError, as Engine and `generate` do, and when there are no scores.
    """
    ids = prompt_ids(model, text_or_ids, "text_or_ids")
    pins = prompt_pins(pinned, text_or_ids, ids, model.tokenizer, "text_or_ids")
    return windows(model, ids, policy, threshold, backend, scores, pins, kept)[0]


def windows(model: Model, text_or_ids: Prompt, policy: Policy | None = None, threshold: float = 0.0,
            backend: str | None = None, scores: bool = False, pinned: Pin | None = None,
            kept: float | None = None) -> list[Trace]:
    """`trace` of a text of any length: in windows of n_positions tokens, each decoded by itself.

    A window has the pins of its own tokens: a leading text is pinned in the first alone.

    Raises ValueError as `trace` does.
    """
    ids = prompt_ids(model, text_or_ids, "text_or_ids", whole=False)
    pins = prompt_pins(pinned, text_or_ids, ids, model.tokenizer, "text_or_ids")
    engine = Engine(model, backend, policy=policy, threshold=threshold, kept=kept)
    if scores and not engine.policy.learned:
        raise ValueError(f"scores: policy {engine.policy} has none; leave scores out, or trace with a learned policy")
    size = model.config.n_positions
    parts = [slice(start, start + size) for start in range(0, len(ids), size)]
    return [_window(model, engine, ids[part], scores, None if pins is None else pins[part]) for part in parts]


def _window(model: Model, engine: Engine, ids: list[int], scores: bool, pinned: np.ndarray | None) -> Trace:
    drops: list[np.ndarray] = []
    sequence = engine.new_sequence()
    engine.feed([sequence], [ids], drops=drops, pinned=None if pinned is None else [pinned])
    engine.release(sequence)
    whole = Dropped(0, len(ids), 0, list(map(len, drops)), np.concatenate(drops))
    return _trace(model, engine, ids, len(ids), [whole], pinned, scores=scores)


def trace_of(model: Model, engine: Engine, row: Row) -> Trace | None:
    """The Trace of a row of `generate` that was recorded; None where no token of it was fed."""
    assert row.dropped is not None
    fed = [*row.prompt, *row.ids][: row.seen]
    return _trace(model, engine, fed, len(row.prompt), row.dropped, row.pinned) if fed else None


def _trace(model: Model, engine: Engine, ids: list[int], prompt_tokens: int, steps: Iterable[Dropped],
           pinned: np.ndarray | None, **fields: Any) -> Trace:
    marked = () if pinned is None else tuple(np.flatnonzero(pinned).tolist())
    return Trace(model.config, np.array(ids, np.int64), pieces(model.tokenizer, ids), prompt_tokens, engine.policy,
                 engine.threshold, engine.backend, _lifetime(model.config.n_layer, len(ids), steps), model,
                 weights=engine.weights, kv=engine.kv, pinned=marked, **fields)


def _lifetime(L: int, T: int, steps: Iterable[Dropped]) -> np.ndarray:  # -> int32 [L, T]
    left = np.full((L, T), T, np.int32)
    for first, n, start, counts, pairs in steps:
        if start + n <= T:  # an interrupt may have come between a step and its end
            own = (pairs[:, 0] >= first) & (pairs[:, 0] < first + n)
            left[np.repeat(np.arange(L), counts)[own], pairs[own, 1]] = pairs[own, 0] - first + start
    return left - np.arange(T, dtype=np.int32)
