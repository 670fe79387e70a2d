"""Items as questions, and what is no item."""


import pytest
from task_tools import HELLASWAG, ITEMS, PIQA, WINOGRANDE, written

from dcp_ref.analysis.tasks import TASKS, Question, read_questions


@pytest.mark.parametrize(("task", "expected"), [
    ("lambada", Question([("He opened the old\ndoor and saw the", " sea")], 0, [3])),
    ("hellaswag", Question([("He opens a door.", " " + e) for e in HELLASWAG["endings"]], 1, [9, 10, 1, 3])),
    ("piqa", Question([("Question: Open a door\nAnswer:", answer) for answer in (" Push it.", " Eat it.")], 0, [8, 7])),
    ("winogrande", Question([("The door hit the cat as the cat", " was slow."),
                             ("The door hit the cat as the door", " was slow.")], 1, [3, 4])),
])
def test_questions(tmp_path, task, expected):
    assert read_questions(task, written(tmp_path, "", ITEMS[task])) == [expected._replace(line=2)]


@pytest.mark.parametrize(("task", "name", "labels"), [("hellaswag", "label", (0, 1, 2, 3)), ("piqa", "label", (0, 1)),
                                                     ("winogrande", "answer", (1, 2))])
def test_labels_are_numbers_or_their_texts(task, name, labels):
    for label in labels:
        forms = [label, float(label), str(label), f" {label}\n"]
        assert [TASKS[task].question({**ITEMS[task], name: form}).right for form in forms] == [label - labels[0]] * 4


def test_the_marks_of_wikihow():
    """What lm-evaluation-harness makes of an item as it is published (tests/test_lm_eval.py asks it)."""
    item = {"activity_label": "Shoes", "ctx_a": "[header] How to tie a shoe [title] Take a lace. [step] Hold  it.",
            "ctx_b": "then He", "endings": ["pulls [substeps] it.", "[step] Sits.", "[title]", " eats it [title] So "],
            "label": "3", "ctx": "unused"}
    question = TASKS["hellaswag"].question(item)
    assert question == Question(
        [("Shoes: How to tie a shoe. Take a lace. Hold it. Then he", " " + ending)
         for ending in ("pulls it.", " Sits.", "", "eats it. So")], 3, [9, 6, 0, 11])
    assert TASKS["hellaswag"].question({**HELLASWAG, "ctx": "[step] He opens."}).pairs[0][0] == " He opens."


def test_a_blank_at_the_end_of_its_sentence():
    question = TASKS["winogrande"].question({**WINOGRANDE, "sentence": "The cat feared the _."})
    assert question.pairs == [("The cat feared the cat", " ."), ("The cat feared the door", " .")]


def test_limit_and_blank_lines(tmp_path):
    path = written(tmp_path, PIQA, "", {**PIQA, "goal": "\u2028x"}, " ", "no item", "")
    contexts = [question.pairs[0][0] for question in read_questions("piqa", path, 2)]
    assert contexts == [f"Question: {goal}\nAnswer:" for goal in ("Open a door", "\u2028x")]
    with pytest.raises(ValueError, match=r"items\.jsonl, line 5: no item of piqa"):
        read_questions("piqa", path, 3)
    with pytest.raises(ValueError, match="limit must be 1 or more, not 0"):
        read_questions("piqa", path, 0)


@pytest.mark.parametrize(("task", "change", "words"), [
    ("lambada", {"text": "word"}, "no last word after a space"),
    ("lambada", {"text": "a word "}, "no last word"),
    ("lambada", {"text": None}, '"text" must be a text'),
    ("hellaswag", {"ctx": ""}, '"ctx" must be a text that is not empty'),
    ("hellaswag", {"endings": "abcd"}, '"endings" must be four texts'),
    ("hellaswag", {"endings": ["a", "b", "c"]}, '"endings" must be four texts'),
    ("hellaswag", {"endings": ["a", "b", "c", 4]}, '"endings" must be four texts'),
    ("hellaswag", {"label": 4}, r'"label" must be one of \[0, 1, 2, 3\]'),
    *(("hellaswag", {"label": label}, '"label" must be one of') for label in ("4", "", "1.0", "-1", True, 1.5, None)),
    ("hellaswag", {"ctx_a": "He"}, '"ctx_b" must be a text'),
    ("hellaswag", {"ctx_a": "He", "ctx_b": ""}, '"activity_label" must be a text that is not empty'),
    ("piqa", {"label": True}, '"label" must be one of'),
    ("piqa", {"sol2": ["x"]}, '"sol2" must be a text'),
    ("winogrande", {"sentence": "The cat was slow."}, '"sentence" must have a blank'),
    ("winogrande", {"sentence": "The cat was _"}, "text after it"),
    *(("winogrande", {"answer": answer}, r'"answer" must be one of \[1, 2\]') for answer in (0, "3", True)),
    ("winogrande", {"option1": 3}, '"option1" must be a text'),
])
def test_what_is_no_item_is_named_by_line(tmp_path, task, change, words):
    path = written(tmp_path, ITEMS[task], {**ITEMS[task], **change})
    with pytest.raises(ValueError, match=rf"items\.jsonl, line 2: no item of {task}: .*{words}"):
        read_questions(task, path)


@pytest.mark.parametrize(("line", "words"), [("{", "line 1"), ("[]", "line 1.*JSON object"), ("", "has no items")])
def test_other_files(tmp_path, line, words):
    with pytest.raises(ValueError, match=words):
        read_questions("piqa", written(tmp_path, line))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match="nowhere: cannot be read"):
        read_questions("piqa", str(tmp_path / "nowhere"))
    (tmp_path / "x").write_bytes(b"{}\n\xff")
    with pytest.raises(ValueError, match="not UTF-8 at byte 3"):
        read_questions("piqa", str(tmp_path / "x"))


def test_a_byte_order_mark_and_windows_lines_are_no_part_of_items(tmp_path):
    plain = written(tmp_path, ITEMS["piqa"], ITEMS["piqa"])
    expected = read_questions("piqa", plain)
    lines = (tmp_path / "items.jsonl").read_bytes()
    (tmp_path / "windows").write_bytes(b"\xef\xbb\xbf" + lines.replace(b"\n", b"\r\n"))
    assert read_questions("piqa", str(tmp_path / "windows")) == expected
