"""`dcp-ref generate --save-cache` and `--cache`: a long text is read once; errors come before anything is written."""

import json

import pytest
from cli_tools import assert_refused, call

TEXT = "The old man looked at the sea, and the sea looked back at him."
GREEDY = ("--temperature", "0", "--max-new-tokens", "6")


@pytest.fixture
def file(tmp_path, capsys):
    path = str(tmp_path / "text.cache")
    code, out, facts = call(capsys, "generate", TEXT, "--save-cache", path, "--max-new-tokens", "0")
    assert (code, out) == (0, TEXT + "\n") and "of 64 tokens seen" in facts
    return path


def test_it_goes_on_as_if_it_had_read_the_text(capsys, file):
    whole = call(capsys, "generate", TEXT + " He", *GREEDY)
    rest = call(capsys, "generate", " He", "--cache", file, *GREEDY)
    assert rest[0] == 0 and TEXT + rest[1] == whole[1]
    assert rest[2].split("live")[1].split("; cache")[0] == whole[2].split("live")[1].split("; cache")[0]


def test_the_text_goes_on_where_its_cache_is_saved(capsys, tmp_path, file):
    again = str(tmp_path / "again")
    plain = call(capsys, "generate", TEXT, *GREEDY)
    assert call(capsys, "generate", TEXT, "--save-cache", again, *GREEDY)[:2] == plain[:2]
    for path in (file, again):
        assert call(capsys, "generate", " She", "--cache", path, *GREEDY)[1] == \
            call(capsys, "generate", " She", "--cache", file, *GREEDY)[1]
    json_of = json.loads(call(capsys, "generate", TEXT, "--save-cache", again, "--json", "--max-new-tokens", "1")[1])
    assert json_of["cache_bytes_peak"] == json_of["cache_bytes_logical"] == json_of["cache_bytes"]
    assert [set(layer) <= {"learned"} for layer in json_of["dropped"]] == [True] * 4
    assert sum(layer.get("learned", 0) for layer in json_of["dropped"]) + json_of["live_tokens"] == 64
    assert json_of["new_tokens"] == 1 and json_of["seen_tokens"] == 64 and json_of["cache_bytes"] > 0


def test_several_prompts_follow_one_text_in_forks_of_it(capsys, file):
    code, out, _ = call(capsys, "generate", " He", " She", "--cache", file, *GREEDY)
    alone = [call(capsys, "generate", prompt, "--cache", file, *GREEDY)[1] for prompt in (" He", " She")]
    assert code == 0 and out == f"--- 1 of 2\n{alone[0]}--- 2 of 2\n{alone[1]}"


def test_a_longer_text_is_saved_on_top_of_the_first(capsys, tmp_path, file):
    longer = str(tmp_path / "longer")
    assert call(capsys, "generate", " He", "--cache", file, "--save-cache", longer, "--max-new-tokens", "0")[0] == 0
    whole = call(capsys, "generate", TEXT + " He saw", *GREEDY)
    assert TEXT + " He" + call(capsys, "generate", " saw", "--cache", longer, *GREEDY)[1] == whole[1]


def test_pins_are_saved(capsys, tmp_path):
    path, rule = str(tmp_path / "pinned"), ("--policy", "window:2")
    pinned = ("--pin", "The old man", " looked at the sea", *rule)
    assert call(capsys, "generate", *pinned, "--save-cache", path, "--max-new-tokens", "0")[0] == 0
    whole = call(capsys, "generate", "--pin", "The old man", " looked at the sea, and", *rule, *GREEDY)
    rest = call(capsys, "generate", ", and", "--cache", path, *rule, *GREEDY)
    assert "The old man looked at the sea" + rest[1] == whole[1]
    assert rest[2].split("live")[1].split("; cache")[0] == whole[2].split("live")[1].split("; cache")[0]


@pytest.mark.parametrize(("arguments", "words"), [
    (("He", "--cache", "FILE", "--policy", "window:5"), "policy.name is 'learned' there, and 'window:5' here"),
    (("He", "--cache", "FILE", "--kv", "int8"), "kv is 'float32' there"),
    (("He", "--cache", "none"), "none: cannot be read (No such file or directory)"),
    (("He", "--cache", "FILE", "--trace", "x.html"), "--trace needs all of the text"),
    (("He", "She", "--save-cache", "more"), "--save-cache takes one prompt, not 2"),
    ((" sea" * 500, "--cache", "FILE"), "the prompt is too long: 500 tokens after the 16 of"),
    (("", "--cache", "FILE"), "the prompt is empty")])
def test_what_is_refused(capsys, file, arguments, words):
    assert_refused(call(capsys, "generate", *(word.replace("FILE", file) for word in arguments)), words)


def test_what_cannot_be_written(capsys, file):
    assert_refused(call(capsys, "generate", "He", "--save-cache", f"{file}/more"), "File exists", code=1)
