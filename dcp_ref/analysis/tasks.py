"""Zero-shot tasks: their items, read from files, as questions that a model answers by likelihood.

    lambada     {"text"}                                                    the last word is the answer
    hellaswag   {"activity_label", "ctx_a", "ctx_b", "endings", "label"}    which ending follows
    piqa        {"goal", "sol1", "sol2", "label"}                           which solution follows
    winogrande  {"sentence", "option1", "option2", "answer"}                which option makes the rest likelier

Each line is one item as a JSON object. "label" counts from 0, "answer" is 1 or 2; both are numbers, or texts of them.
Questions are those of lm-evaluation-harness, so that accuracies can be compared. A hellaswag item may have "ctx" in
place of "activity_label", "ctx_a" and "ctx_b".
"""

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from dcp_ref.checkpoints import inputs
from dcp_ref.checkpoints.inputs import decoded

BLANK = "_"


class Question(NamedTuple):
    """The (context, continuation) of each answer, the index of the right one, and the answers' lengths in characters.

    A question with a single answer asks whether greedy decoding writes it. `line` is its line in the file, from 1.
    """

    pairs: list[tuple[str, str]]
    right: int
    lengths: list[int]
    line: int = 0


class Task(NamedTuple):
    """How to read an item, and the accuracy of guessing."""

    question: Callable[[dict[str, Any]], Question]
    chance: float
    normalized: bool = False  # whether accuracy is also measured by nats a character


def lambada(item: dict[str, Any]) -> Question:
    context, space, word = _text(item, "text").rpartition(" ")
    if not context.strip() or not word.strip():
        raise ValueError('"text" has no last word after a space')
    return Question([(context, space + word)], 0, [len(word)])


def hellaswag(item: dict[str, Any]) -> Question:
    endings = item.get("endings")
    if not isinstance(endings, list) or len(endings) != 4 or not all(isinstance(e, str) and e.strip() for e in endings):
        raise ValueError('"endings" must be four texts')
    if "ctx_a" in item:
        then = _text(item, "ctx_b", empty=True).capitalize()
        context = f"{_text(item, 'activity_label')}: {_text(item, 'ctx_a', empty=True)} {then}"
    else:
        context = _text(item, "ctx")
    return _choice(_unmarked(context), [_unmarked(ending) for ending in endings], _label(item, "label", (0, 1, 2, 3)))


def _unmarked(text: str) -> str:
    """The text without WikiHow's marks, such as [title] and [step], which lm-evaluation-harness leaves out too."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def piqa(item: dict[str, Any]) -> Question:
    context = f"Question: {_text(item, 'goal')}\nAnswer:"
    return _choice(context, [_text(item, "sol1"), _text(item, "sol2")], _label(item, "label", (0, 1)))


def winogrande(item: dict[str, Any]) -> Question:
    sentence, options = _text(item, "sentence"), [_text(item, "option1"), _text(item, "option2")]
    before, blank, after = sentence.partition(BLANK)
    if not blank or not after.strip():
        raise ValueError(f'"sentence" must have a blank, {BLANK}, and text after it')
    after = " " + after.strip()
    right = _label(item, "answer", (1, 2)) - 1
    return Question([(before + option, after) for option in options], right, [len(option) for option in options])


TASKS = {
    "lambada": Task(lambada, 0.0),
    "hellaswag": Task(hellaswag, 0.25, normalized=True),
    "piqa": Task(piqa, 0.5, normalized=True),
    "winogrande": Task(winogrande, 0.5),
}


def read_questions(task: str, path: str, limit: int | None = None) -> list[Question]:
    """The first `limit` questions of a file, or of standard input, -. Blank lines are skipped.

    Raises ValueError naming the file, and the line that is not an item of this task.
    """
    if limit is not None and (isinstance(limit, bool) or limit < 1):
        raise ValueError(f"limit must be 1 or more, not {limit}")
    try:
        lines = decoded(inputs.read(path)).split("\n")  # not splitlines: U+2028 may stand within JSON
    except UnicodeDecodeError as error:
        raise ValueError(f"{inputs.name(path)}: not UTF-8 at byte {error.start}") from None
    numbered = [(n, line) for n, line in enumerate(lines, 1) if line.strip()][:limit]
    if not numbered:
        raise ValueError(f"{inputs.name(path)}: has no items")
    return [_question(task, path, n, line) for n, line in numbered]


def _question(task: str, path: str, n: int, line: str) -> Question:
    try:
        item = json.loads(line)
        if not isinstance(item, dict):
            raise ValueError("must be a JSON object")
        return TASKS[task].question(item)._replace(line=n)
    except (ValueError, RecursionError) as error:  # JSONDecodeError is a ValueError
        raise ValueError(f"{inputs.name(path)}, line {n}: no item of {task}: {error}") from None


def _choice(context: str, answers: list[str], right: int) -> Question:
    return Question([(context, " " + answer) for answer in answers], right, [len(answer) for answer in answers])


def _text(item: dict[str, Any], name: str, empty: bool = False) -> str:
    value = item.get(name)
    if not isinstance(value, str) or not (empty or value.strip()):
        raise ValueError(f'"{name}" must be a text{"" if empty else " that is not empty"}')
    return value


def _label(item: dict[str, Any], name: str, labels: tuple[int, ...]) -> int:
    value = item.get(name)
    if isinstance(value, str):  # copies of a data set differ in this
        value = int(value) if re.fullmatch(r"\s*\d\s*", value, re.ASCII) else None
    if isinstance(value, bool) or value not in labels:
        raise ValueError(f'"{name}" must be one of {json.dumps(labels)}')
    return int(value)
