"""How likely texts are to a model, through the cache: nats of tokens, and of continuations of a context."""

from collections.abc import Iterable
from contextlib import ExitStack
from itertools import groupby
from typing import NamedTuple

import numpy as np

from dcp_ref.checkpoints.tokenizer import Tokenizer
from dcp_ref.layers import log_softmax
from dcp_ref.runtime.engine import Engine

Pair = tuple[list[int], list[int]]  # token ids: a context and its continuation


class Scored(NamedTuple):
    """A continuation's -log probability, and whether greedy decoding would have written it."""

    nats: float
    greedy: bool


def nats(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:  # [N, V], [N] -> float64 [N]
    """-log softmax(logits)[target], in float64 so that sums of many lose nothing."""
    return -log_softmax(logits)[np.arange(len(targets)), targets].astype(np.float64)


def pair_ids(tokenizer: Tokenizer, context: str, continuation: str, end: int | None = None) -> Pair:
    """The ids of context and continuation together, cut where the ids of the context alone end.

    This is what lm-evaluation-harness does. White space at the end of the context goes to the continuation, where
    byte-level BPE has it. An empty context becomes the tokenizer's prefix, or else an end of text: `end`, or the
    tokenizer's own. Raises ValueError when the continuation is empty, or nothing can stand for an empty context.
    """
    stripped = context.rstrip()
    if not continuation:
        raise ValueError("there is no text to score")
    if not stripped:
        end = tokenizer.eos_id if end is None else end
        first = tokenizer.prefix or ([] if end is None else [end])
        if not first:
            raise ValueError("the context is empty, and the tokenizer has no end of text to stand for it")
        return first, tokenizer.encode(context + continuation, begins=False)
    ids = tokenizer.encode(stripped)
    both = tokenizer.encode(context + continuation)
    return ids, both[len(ids) :] or tokenizer.encode(context[len(stripped) :] + continuation, begins=False)


def fit(pair: Pair, n_positions: int) -> Pair:
    """The pair with its context cut from the left until all tokens but the last, which is not fed, have a position.

    Raises ValueError when the continuation leaves no position for a context.
    """
    context, continuation = pair
    room = n_positions + 1 - len(continuation)
    if room < 1:
        raise ValueError(f"{len(continuation)} tokens to score are more than n_positions ({n_positions}): "
                         "take a model with more positions, or leave this out")
    return context[-room:], continuation


def score(engine: Engine, pairs: Iterable[Pair]) -> list[Scored]:
    """The score of each continuation. Neighbouring pairs with the same context feed it once and fork it.

    Each pair must `fit`. The engine's sequences are released, whatever happens. Raises ValueError as Engine.feed does.
    """
    results: list[Scored] = []
    for context, group in groupby(pairs, lambda pair: pair[0]):
        with ExitStack() as held:
            parent = engine.new_sequence()
            held.callback(engine.release, parent)
            [first] = engine.feed([parent], [context])
            results += [_scored(engine, parent, first, continuation) for _, continuation in group]
    return results


def _scored(engine: Engine, parent: int, first: np.ndarray, continuation: list[int]) -> Scored:
    """The score of a continuation of the sequence `parent`, whose last logits are `first`."""
    rows = first[None]
    if len(continuation) > 1:
        with ExitStack() as held:
            child = engine.fork(parent)
            held.callback(engine.release, child)
            [more] = engine.feed([child], [continuation[:-1]], "all")
        rows = np.concatenate([rows, more])
    targets = np.array(continuation)
    return Scored(float(nats(rows, targets).sum()), bool(np.all(rows.argmax(-1) == targets)))
