"""What `dcp-ref generate` refuses, in one line, before it prints anything."""

import functools
import sys
import types

import pytest
from cli_tools import assert_refused, call, saved, stdin_of
from text_models import text_model

from dcp_ref.checkpoints import weights

MODEL = text_model()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved(MODEL, tmp_path_factory)


@pytest.fixture
def run(model, capsys):
    """Runs `dcp-ref generate` with the small model: (exit code, stdout, stderr)."""
    return functools.partial(call, capsys, "generate", "--model", model)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([""], ["the prompt is empty"]),
        (["the", ""], ["prompt 2 is empty"]),
        (["a" * 50], ["the prompt is too long: 50 tokens, but the model has 48 positions"]),
        (["caf\udce9 x"], ["the prompt is not UTF-8 (byte 4)"]),
        (["\ud800"], ["surrogate"]),
        (["the", "--stop", "\udce9"], ["--stop is not UTF-8"]),
        (["the", "--stop", ""], ["stop"]),
        (["the", "--file", "nowhere.txt"], ["nowhere.txt: cannot be read (No such file"]),
        (["--file", "."], [".: cannot be read (Is a directory)"]),
        (["--file", "-", "-"], ["standard input, -, is given twice"]),
        (["the", "--temperature", "-1"], ["temperature", "-1"]),
        (["the", "--top-k", "0"], ["top_k", "0"]),
        (["the", "--top-p", "nan"], ["top_p", "nan"]),
        (["the", "--threshold", "nan"], ["threshold must be a number, not nan"]),
        (["the", "--threshold", "1", "--policy", "window:3"], ["threshold is 1.0, but nothing is dropped"]),
        (["the", "--seed", "-3"], ["seed", "-3"]),
        (["the", "--max-new-tokens", "-3"], ["max_new_tokens", "-3"]),
        (["the", "--model", "tinny"], ["tinny", "no such directory"]),
    ],
)
def test_bad_input_is_refused_in_one_line(run, arguments, words):
    assert_refused(run(*arguments), *words)


@pytest.mark.parametrize(("data", "words"), [(b"", "is empty"), (b"\n", "is empty"), (b"a\xe9", "is not UTF-8")])
def test_bad_files_are_named(run, tmp_path, monkeypatch, data, words):
    (tmp_path / "file").write_bytes(data)
    assert_refused(run("the", "--file", f"{tmp_path}/file"), f"{tmp_path}/file {words}")
    stdin_of(monkeypatch, data)
    assert_refused(run(), f"standard input {words}")


@pytest.mark.parametrize("nothing", ["terminal", "closed"])
def test_nobody_to_ask_for_a_prompt(run, monkeypatch, nothing):
    monkeypatch.setattr(sys, "stdin", None if nothing == "closed" else types.SimpleNamespace(isatty=lambda: True))
    assert_refused(run(), "give a prompt")


def test_models_that_cannot_be_used(run, tmp_path):
    weights.save(MODEL, tmp_path)
    for name, words in [
        ("tokenizer.json", "has no tokenizer"),
        ("model.safetensors", "model.safetensors: missing"),
        ("config.json", "config.json: missing"),
    ]:
        (tmp_path / name).unlink()
        assert_refused(run("the", "--model", str(tmp_path)), words)
    weights.save(MODEL, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    assert_refused(run("the", "--model", str(tmp_path)), "model.safetensors: not a whole safetensors file")
