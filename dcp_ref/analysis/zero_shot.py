"""A model's answers to the questions of a zero-shot task, and their accuracy."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from tqdm import tqdm

from dcp_ref.analysis.likelihood import Pair, Scored, fit, pair_ids, score
from dcp_ref.analysis.tasks import TASKS, Question
from dcp_ref.checkpoints.tokenizer import Tokenizer
from dcp_ref.runtime.engine import Engine


class Encoded(NamedTuple):
    """Questions as token ids that fit the model, and the number of questions whose context was cut for that."""

    pairs: list[list[Pair]]
    cut: int


def encode(questions: Sequence[Question], tokenizer: Tokenizer, n_positions: int) -> Encoded:
    """The questions as token ids. Raises ValueError, naming the line, when an answer alone does not fit."""
    result, cut = [], 0
    for question in questions:
        try:
            whole = [pair_ids(tokenizer, *pair) for pair in question.pairs]
            fitting = [fit(pair, n_positions) for pair in whole]
        except ValueError as error:
            raise ValueError(f"line {question.line}: {error}") from None
        result.append(fitting)
        cut += fitting != whole
    return Encoded(result, cut)


def answer(engine: Engine, task: str, questions: Sequence[Question], encoded: Encoded,
           progress: str | None = None) -> dict[str, Any]:
    """Accuracy, its standard error, chance, and for lambada the word's perplexity, in types that JSON can hold.

    `progress` is the title of a progress bar, shown if stderr is a terminal; None for no bar.
    """
    bar = tqdm(encoded.pairs, desc=progress, unit=" items", disable=True if progress is None else None)
    scored = [score(engine, pairs) for pairs in bar]
    both = list(zip(questions, scored, strict=True))
    result = {"items": len(both), "cut": encoded.cut, "chance": TASKS[task].chance,
              **_accuracy("accuracy", [right(question, found) for question, found in both])}
    if TASKS[task].normalized:
        result |= _accuracy("accuracy_normalized", [right(question, found, True) for question, found in both])
    if task == "lambada":
        nats = math.fsum(found[0].nats for found in scored) / len(scored)
        result["perplexity"] = math.exp(min(nats, 700.0))
    return result


def right(question: Question, found: Sequence[Scored], normalized: bool = False) -> bool:
    """Whether the likeliest answer is the right one; `normalized`: the likeliest a character. The first of ties counts.

    For a single answer: whether it is greedy.
    """
    if len(found) == 1:
        return found[0].greedy
    nats = [f.nats for f in found]
    if normalized:  # an answer of marks alone has length 0: never right
        nats = [each / length if length else math.inf for each, length in zip(nats, question.lengths, strict=True)]
    return nats.index(min(nats)) == question.right


def _accuracy(name: str, hits: Sequence[bool]) -> dict[str, float | None]:
    """The mean and its standard error, which is None for a single item."""
    n, mean = len(hits), sum(hits) / len(hits)
    return {name: mean, f"{name}_error": math.sqrt(mean * (1 - mean) / (n - 1)) if n > 1 else None}
