"""Text from prompts: a batch of continuations, each ending by itself."""

import contextlib
import operator
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dcp_ref.checkpoints.weights import Model
from dcp_ref.runtime.engine import Engine
from dcp_ref.runtime.pins import Pin, prompt_pins
from dcp_ref.runtime.row import Generation, Row
from dcp_ref.runtime.sampling import Sampling, check_integer, row_stream

Prompt = str | Sequence[int]


def generate(
    model: Model,
    prompts: Iterable[Prompt],
    max_new_tokens: int = 100,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int = 0,
    stop: str | Sequence[str] = (),
    backend: str | None = None,
    trace: bool = False,
    pin: Pin | None = None,
    **engine_options: Any,
) -> list[Generation]:
    """Continue each prompt (a text, or token ids), all in one batch: one Generation a prompt, in their order.

    `backend` and `engine_options` (policy, threshold, kept, weights, kv, threads, max_cache_bytes) are Engine's.
    Row b draws from SeedSequence([seed, b]) and ends by itself: it does not depend on the rows beside it. When it ends,
    the others can use its pages. temperature 0 is greedy.
    `pin` says which tokens of each prompt are pinned: no rule ever drops these. It is a text that each prompt begins
    with, or (start, end) pairs of positions, or a bool for each token.
    `trace` gives each Generation its Trace: who dropped whom, when and why (dcp_ref.tracing).
    Raises ValueError naming the prompt or setting at fault, before anything is computed.
    """
    sampling = Sampling(temperature, top_k, top_p)
    rows = make_rows(model, prompts, max_new_tokens, seed, stop, trace, pin)
    engine = Engine(model, backend, **engine_options)
    complete(engine, rows, sampling)
    results = [row.generation() for row in rows]
    if not trace:
        return results
    from dcp_ref.tracing.recording import trace_of

    return [result._replace(trace=trace_of(model, engine, row)) for result, row in zip(results, rows, strict=True)]


def complete(engine: Engine, rows: list[Row], sampling: Sampling) -> None:
    """Take steps until all rows have ended. Afterwards the engine holds none of their tokens, even after an error."""
    with contextlib.ExitStack() as at_the_end:  # if one release is interrupted, the others are still made
        for row in rows:
            at_the_end.callback(row.release, engine)
        while step(engine, rows, sampling):
            pass


def make_rows(
    model: Model, prompts: Iterable[Prompt], max_new_tokens: int, seed: int, stop: str | Sequence[str],
    traced: bool = False, pin: Pin | None = None,
) -> list[Row]:
    """One Row a prompt, all checked. Raises ValueError as `generate` does."""
    if isinstance(prompts, (str, bytes)):
        raise ValueError("prompts must be a list, not one string: put [ ] around it")
    check_integer("max_new_tokens", max_new_tokens, 0)
    check_integer("seed", seed, 0)
    stop = [stop] if isinstance(stop, str) else list(stop)
    for text in stop:
        if not isinstance(text, str) or not text:
            raise ValueError(f"stop must be texts of at least one character, not {text!r}")
    if stop and model.tokenizer is None:
        raise ValueError("stop: the model has no tokenizer, so there is no text to find a stop string in")
    rows = []
    for b, prompt in enumerate(prompts):
        ids = prompt_ids(model, prompt, f"prompts[{b}]")
        pinned = None if pin is None else prompt_pins(pin, prompt, ids, model.tokenizer, f"prompts[{b}]")
        rows.append(Row(model, ids, max_new_tokens, row_stream(seed, b), stop, traced, pinned))
    return rows


def prompt_ids(model: Model, prompt: Prompt, name: str, whole: bool = True) -> list[int]:
    """The token ids of a prompt, which must fit the model's positions where it is read as a `whole`.

    Raises ValueError, calling the prompt `name`, when the model cannot continue it.
    """
    V, n_positions = model.config.vocab_size, model.config.n_positions
    if isinstance(prompt, str):
        if model.tokenizer is None:
            raise ValueError(f"{name}: the model has no tokenizer; give token ids")
        try:
            ids = model.tokenizer.encode(prompt)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    else:
        ids = _integers(name, prompt)
    if not ids:
        raise ValueError(f"{name} is empty")
    if whole and len(ids) > n_positions:
        raise ValueError(f"{name} is too long: {len(ids)} tokens, but the model has {n_positions} positions")
    for i in ids:
        if not 0 <= i < V:
            raise ValueError(f"{name}: token id {i} is not in [0, {V})")
    return ids


def _integers(name: str, prompt: Sequence[int]) -> list[int]:
    try:
        ids = list(prompt)
        if isinstance(prompt, bytes) or any(isinstance(i, bool) for i in ids):  # they would pass for integers
            raise TypeError
        return list(map(operator.index, ids))
    except TypeError:
        raise ValueError(f"{name} must be a text or a list of token ids, not {prompt!r}") from None


def step(engine: Engine, rows: list[Row], sampling: Sampling) -> bool:
    """Give every row that has not ended its next token; False when there is no such row.

    The first step feeds a row's whole prompt, a later one its newest token. A row that ends is released.
    """
    running = [row for row in rows if row.stop_reason is None]
    if not running:
        return False
    accept(engine, running, read(engine, running), sampling)
    return True


def read(engine: Engine, rows: list[Row]) -> list[np.ndarray]:
    """Feed each row the tokens that it has not fed yet, pinned as it says; returns its logits."""
    sequences = []
    for row in rows:
        if row.sequence is None:
            row.sequence = engine.new_sequence()
        sequences.append(row.sequence)
    drops: list[np.ndarray] | None = None if rows[0].dropped is None else []  # all rows are traced, or none is
    pinning = [row for row in rows if row.pinned is not None and row.pending is row.prompt]
    pinned: list[Any] | None = [row.pinned if row in pinning else False for row in rows] if pinning else None
    logits = engine.feed(sequences, [row.pending for row in rows], drops=drops, pinned=pinned)
    if drops is not None:
        _keep(rows, drops)
    return logits


def accept(engine: Engine, rows: list[Row], logits: list[np.ndarray], sampling: Sampling) -> None:
    """Draw the next token of each row from the logits of `read`. A row that ends is released."""
    for row, x in zip(rows, logits, strict=True):
        x[row.undrawable] = -np.inf
        row.accept(sampling.draw(x, row.rng))
        if row.stop_reason is not None:
            row.release(engine)


class Dropped(NamedTuple):
    """What one step dropped from a whole batch; the row's tokens are `n` rows from `first` on."""

    first: int
    n: int
    start: int  # the position of the first of them
    counts: list[int]  # [L]: how many pairs are each layer's
    pairs: np.ndarray  # int32 [sum of counts, 2]: (row of the batch, position)


def _keep(running: list[Row], drops: list[np.ndarray]) -> None:
    """Keep what a step dropped, layer by layer, in the rows that were fed."""
    pairs, counts, first = np.concatenate(drops), list(map(len, drops)), 0
    for row in running:
        assert row.dropped is not None
        row.dropped.append(Dropped(first, len(row.pending), row.seen, counts, pairs))
        first += len(row.pending)
