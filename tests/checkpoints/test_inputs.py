"""Standard input, -, is read wherever a file is; what cannot be read is named, with what the system said."""

import json
import os
import sys

import pytest
from cli_tools import assert_refused, call, saved, stdin_of
from text_models import TEXT, text_model
from training_tools import SHAPE, write_text

from dcp_ref.checkpoints import inputs
from dcp_ref.training import TrainSettings

MODEL = text_model()
ITEM = {"goal": "the old man", "sol1": "looked", "sol2": "was grey", "label": 0}
BOOK = (TEXT * 3).encode()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved(MODEL, tmp_path_factory)


@pytest.mark.parametrize(("data", "arguments", "option"), [
    (BOOK, ["--max-tokens", "40", "--json"], "--text"),
    (BOOK, ["--max-tokens", "40", "--json", "--sweep", "--thresholds", "1", "--context", "24"], "--text"),
    (json.dumps(ITEM).encode(), ["--task", "piqa", "--json"], "--data"),
])
def test_evaluate(capsys, monkeypatch, tmp_path, model, data, arguments, option):
    """A sweep reads the text for each of its models."""
    (tmp_path / "file").write_bytes(data)
    arguments = ["evaluate", "--model", model, *arguments, *["--dense", model] * ("--sweep" in arguments)]
    expected = call(capsys, *arguments, option, f"{tmp_path}/file")
    stdin_of(monkeypatch, data)
    assert expected[0] == 0 and call(capsys, *arguments, option, "-") == expected


def test_train(capsys, monkeypatch, tmp_path):
    book, losses = write_text(tmp_path / "book.txt"), []
    stdin_of(monkeypatch, (tmp_path / "book.txt").read_bytes())
    for n, text in enumerate((book, "-")):
        arguments = ["--text", text, "--valid", book, "--config", SHAPE, "--steps", "1", "--batch", "2"]
        code, out, _ = call(capsys, "train", *arguments, "--out", f"{tmp_path}/{n}", "--vocab-size", "270")
        losses.append(out.splitlines()[0])
        assert code == 0
    assert losses[0] == losses[1]


@pytest.mark.parametrize("arguments", [
    ["generate", "--file", "-", "-"], ["evaluate", "--text", "-", "--text", "-"],
    ["train", "--out", "nowhere", "--text", "-", "--valid", "-"]])
def test_twice(capsys, arguments):
    assert_refused(call(capsys, *arguments), "standard input, -, is given twice, but can be read once")


def test_twice_in_python():
    with pytest.raises(ValueError, match="given twice"):
        TrainSettings(text=("-",), valid=("-",), out="x")


@pytest.mark.parametrize("option", ["--text", "--task=piqa --data"])
def test_bad_standard_input(capsys, monkeypatch, model, option):
    arguments = ["evaluate", "--model", model, *option.split(), "-"]
    stdin_of(monkeypatch, b"a\xe9")
    assert_refused(call(capsys, *arguments), "standard input: not UTF-8 at byte 1")
    monkeypatch.setattr(sys, "stdin", None)
    assert_refused(call(capsys, *arguments), "standard input is closed: give a file")


def test_a_standard_input_that_cannot_be_read(capsys, monkeypatch):
    with open(os.open(os.devnull, os.O_WRONLY)) as unreadable:
        monkeypatch.setattr(sys, "stdin", unreadable)
        assert_refused(call(capsys, "generate", "--file", "-"), "standard input: cannot be read (Bad file descriptor)")


@pytest.mark.parametrize(("make", "words"), [
    (lambda path: path.mkdir(), "Is a directory"), (lambda path: path.symlink_to(path), "Too many levels"),
    (lambda path: None, "No such file")])
def test_what_the_system_said(tmp_path, make, words):
    make(tmp_path / "two  spaces")
    with pytest.raises(ValueError, match=rf"two  spaces: cannot be read \({words}"):
        inputs.read(f"{tmp_path}/two  spaces")
