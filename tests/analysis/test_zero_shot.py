"""Answers to questions: which counts as right, and the numbers made of that."""

import math

import pytest
from text_models import TOKENIZER, text_model

from dcp_ref import Engine, policies
from dcp_ref.analysis import zero_shot
from dcp_ref.analysis.likelihood import Scored, score
from dcp_ref.analysis.tasks import TASKS, Question
from dcp_ref.analysis.zero_shot import answer, encode, right

MODEL = text_model()
PIQA = [{"goal": "the old man", "sol1": "looked at the sea", "sol2": "was", "label": 0},
        {"goal": "the sea", "sol1": "looked", "sol2": "was grey; señor", "label": 1},
        {"goal": "the sea " * 30, "sol1": "looked", "sol2": "was grey", "label": 1}]


def test_which_answer_is_right():
    question = Question([("a", " b"), ("a", " cccc")], 1, [1, 4])
    found = [Scored(2.0, True), Scored(6.0, False)]
    assert not right(question, found)  # 2 nats are less than 6
    assert right(question, found, normalized=True)  # but 1.5 a character are less than 2
    assert not right(question, [Scored(2.0, False)] * 2)  # of equal ones the first counts
    single = Question([("a", " b")], 0, [1])
    assert right(single, [Scored(9.0, True)]) and not right(single, [Scored(0.1, False)])


@pytest.mark.parametrize("policy", [policies.learned, policies.sinks(1, 3)])
def test_the_numbers(policy):
    questions = [TASKS["piqa"].question(item) for item in PIQA]
    encoded = encode(questions, TOKENIZER, 48)
    result = answer(Engine(MODEL, policy=policy), "piqa", questions, encoded)
    found = [score(Engine(MODEL, policy=policy), pairs) for pairs in encoded.pairs]
    for name, normalized in (("accuracy", False), ("accuracy_normalized", True)):
        p = sum(right(q, f, normalized) for q, f in zip(questions, found, strict=True)) / 3
        assert result[name] == p and result[f"{name}_error"] == pytest.approx(math.sqrt(p * (1 - p) / 2))
    assert (result["items"], result["cut"], result["chance"]) == (3, 1, 0.5)
    assert "perplexity" not in result


def test_lambada():
    texts = ["the old man looked at the sea", "and the sea was grey"]
    questions = [TASKS["lambada"].question({"text": text}) for text in texts]
    result = answer(Engine(MODEL), "lambada", questions, encode(questions, TOKENIZER, 48))
    pairs = [(TOKENIZER.encode(context), TOKENIZER.encode(f" {word}")) for context, word in [
        ("the old man looked at the", "sea"), ("and the sea was", "grey")]]
    nats = [found.nats for found in score(Engine(MODEL), pairs)]
    assert result["perplexity"] == pytest.approx(math.exp(sum(nats) / 2))
    assert result["chance"] == 0 and "accuracy_normalized" not in result
    [one] = questions[:1]
    assert answer(Engine(MODEL), "lambada", [one], encode([one], TOKENIZER, 48))["accuracy_error"] is None


def test_a_context_is_cut_from_the_left():
    [question] = [TASKS["piqa"].question(PIQA[2])]
    encoded = encode([question], TOKENIZER, 20)
    whole = TOKENIZER.encode(question.pairs[0][0])
    for context, rest in encoded.pairs[0]:
        assert len(context) + len(rest) == 21 and context == whole[-len(context) :]
    assert encoded.cut == 1


def test_an_answer_without_room():
    question = TASKS["piqa"].question({**PIQA[0], "sol2": "looked " * 40})._replace(line=7)
    with pytest.raises(ValueError, match=r"^line 7: \d+ tokens to score are more than n_positions \(48\): take "):
        encode([TASKS["piqa"].question(PIQA[0]), question], TOKENIZER, 48)


def test_all_tasks_have_their_chance():
    assert {name: task.chance for name, task in TASKS.items()} == {
        "lambada": 0, "hellaswag": 0.25, "piqa": 0.5, "winogrande": 0.5}
    assert zero_shot.TASKS is TASKS
