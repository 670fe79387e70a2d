"""`dcp-ref calibrate`, and the share to keep, --kept, that other commands then take."""

import dataclasses
import functools
import json
import shutil
import tempfile

import pytest
from cli_tools import assert_refused, call, saved
from story import TEXT
from text_models import CONFIG, TOKENIZER, text_model

from dcp_ref import load
from dcp_ref.analysis import calibration
from dcp_ref.checkpoints import weights
from dcp_ref.checkpoints.files import SHIPPED

CARD = ((0.1, 1.0), (0.3, -0.5), (0.6, -2.0))
MODEL = text_model(dataclasses.replace(CONFIG, kept_thresholds=CARD))
DOCUMENT = "the old man looked at the sea, and the sea was grey; " * 9


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return saved(MODEL, tmp_path_factory)


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(DOCUMENT)
    return str(path)


@pytest.fixture
def run(capsys):
    return functools.partial(call, capsys)


def contents(directory):
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def test_the_shipped_model_on_a_text(run, tmp_path):
    """The share through the cache is within 2% of the one wanted; and nothing else in the directory changes."""
    directory, text = tmp_path / "copy", tmp_path / "clock.txt"
    shutil.copytree(SHIPPED / "tiny", directory)
    text.write_text(TEXT * 3, encoding="utf-8")
    fields = json.loads((directory / "config.json").read_text()) | {"of_another_program": [1, 2]}
    (directory / "config.json").write_text(json.dumps(fields))
    before = contents(directory)
    arguments = ["calibrate", "--model", str(directory), "--text", str(text), "--windows", "2"]
    code, out, err = run(*arguments, "--shares", "0.1", "0.3", "--json")
    measured = json.loads(out)["measured"]
    assert code == 0 and err == f"dcp-ref calibrate: written: {directory / 'config.json'}\n"
    assert [one["share"] for one in measured] == [0.3, 0.1]
    for one in measured:
        assert one["kept"] == pytest.approx(one["share"], rel=calibration.CARD_REACHED)
    after = contents(directory)
    changed = json.loads(after.pop("config.json"))
    assert after == {name: data for name, data in before.items() if name != "config.json"}
    assert changed.pop("kept_thresholds") == [[one["share"], one["threshold"]] for one in reversed(measured)]
    assert changed == {name: value for name, value in fields.items() if name != "kept_thresholds"}
    kept = ["evaluate", "--model", str(directory), "--text", str(text), "--json", "--kept", "0.3"]
    result = json.loads(run(*kept)[1])
    assert result["threshold"] == load(directory).config.threshold_for(0.3) == measured[0]["threshold"]
    assert result["share_kept"] == pytest.approx(0.3, rel=0.1)  # of other windows


def test_the_table(run, book, tmp_path, monkeypatch):
    weights.save(MODEL, tmp_path / "model")
    found = [calibration.Measured(0.5, -1.25, 0.501, 12.34), calibration.Measured(0.1, 0.75, 0.2, 13.0)]
    monkeypatch.setattr(calibration, "card", lambda *_, **__: found)
    code, out, err = run("calibrate", "--model", str(tmp_path / "model"), "--text", book)
    assert code == 0 and out.splitlines() == [
        "| share wanted | threshold | through the cache | perplexity |",
        "| ------------ | --------: | ----------------: | ---------: |",
        "| 50.0%        |     -1.25 |             50.1% |      12.34 |",
        "| 10.0%        |      0.75 |             20.0% |      13.00 |"]
    assert "no threshold keeps 0.1: left out of config.json\n" in err
    assert load(tmp_path / "model").config == dataclasses.replace(CONFIG, kept_thresholds=((0.5, -1.25),))
    del found[0]
    before = contents(tmp_path / "model")
    code, out, err = run("calibrate", "--model", str(tmp_path / "model"), "--text", book)
    assert code == 2 and "keeps none of these shares at any threshold: nothing is written" in err
    assert contents(tmp_path / "model") == before


@pytest.mark.parametrize(("arguments", "words"), [
    (["--model", "tinny"], "tinny"),
    (["--text", "nowhere"], "nowhere: cannot be read"),  # one file more
    (["--windows", "0"], "windows must be 1 or more, not 0"),
    (["--shares", "0.5", "2"], "shares must be above 0 and up to 1, not [0.5, 2.0]"),
    (["--shares", "nan"], "shares must be above 0 and up to 1"),
])
def test_refusals(run, model, book, arguments, words):
    assert_refused(run("calibrate", "--model", model, "--text", book, *arguments), words)


def test_models_and_texts_that_cannot_be_used(run, book, tmp_path):
    weights.save(text_model(dataclasses.replace(CONFIG, int_n_embd=None)), tmp_path / "plain")
    assert_refused(run("calibrate", "--model", str(tmp_path / "plain"), "--text", book), "has no interaction weights")
    weights.save(MODEL, tmp_path / "model")
    (tmp_path / "short.txt").write_text("the old man")
    n = len(TOKENIZER.encode("the old man")) + 1
    assert_refused(run("calibrate", "--model", str(tmp_path / "model"), "--text", str(tmp_path / "short.txt")),
                   f"the text has {n} tokens, but a window and its last target need 49: give a longer text")


def test_a_directory_that_cannot_be_written_is_refused_before_the_work(run, book, monkeypatch):
    def refused(dir, prefix):
        raise PermissionError(13, "Permission denied", f"{dir}/{prefix}")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refused)
    monkeypatch.setattr(calibration, "card", lambda *_, **__: 1 / 0)
    assert_refused(run("calibrate", "--model", "tiny", "--text", book),
                   "tiny cannot be written into (Permission denied): copy it, and calibrate the copy")


def test_an_interrupt_changes_nothing(run, book, tmp_path, monkeypatch):
    weights.save(MODEL, tmp_path / "model")
    before = contents(tmp_path / "model")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(calibration, "evaluate", interrupted)
    assert_refused(run("calibrate", "--model", str(tmp_path / "model"), "--text", book, "--windows", "1"),
                   "interrupted", code=130)
    assert contents(tmp_path / "model") == before


@pytest.mark.parametrize("command", ["generate", "evaluate", "trace"])
def test_a_share_is_the_threshold_that_the_config_has_for_it(run, model, book, command):
    arguments = {"generate": ["the", "--temperature", "0", "--max-new-tokens", "20"],
                 "evaluate": ["--text", book], "trace": ["the old man looked at the sea"]}[command]

    def result(*more):
        found = json.loads(run(command, "--model", model, *arguments, "--json", *more)[1])
        return {name: value for name, value in found.items() if name not in ("seconds", "tokens_per_second")}

    for share in (0.1, 0.2, 0.6):
        assert result("--kept", str(share)) == result("--threshold", repr(MODEL.config.threshold_for(share)))
    assert result("--kept", "0.6") != result("--kept", "0.1")


@pytest.mark.parametrize("command", ["generate", "evaluate", "trace"])
def test_shares_that_are_refused(run, model, book, command, capsys):
    arguments = [command, "--model", model, *(["--text", book] if command == "evaluate" else ["the old man"])]
    assert_refused(run(*arguments, "--kept", "0.7"), "kept must be from 0.1 to 0.6", "dcp-ref calibrate")
    assert_refused(run(*arguments, "--kept", "0.2", "--policy", "window:3"), "kept is 0.2, but nothing is dropped")
    with pytest.raises(SystemExit, match="2"):
        run(*arguments, "--kept", "0.2", "--threshold", "0")
    assert "argument --threshold: not allowed with argument --kept" in capsys.readouterr().err
    if command == "evaluate":
        assert_refused(run(*arguments, "--kept", "0.2", "--sweep"), "--sweep chooses policies, thresholds, shares")


def test_a_share_in_a_task_beside_dense(run, model, tmp_path):
    item = {"goal": "open the door", "sol1": "the old man", "sol2": "the sea", "label": 0}
    (tmp_path / "items.jsonl").write_text(json.dumps(item) + "\n")
    result = json.loads(run("evaluate", "--model", model, "--task", "piqa", "--data", str(tmp_path / "items.jsonl"),
                            "--kept", "0.3", "--json")[1])
    assert list(result["results"]) == ["learned", "dense"] and result["threshold"] == -0.5


def test_a_model_trained_from_one_that_was_calibrated_is_not(run, model, book, tmp_path):
    train = ["train", "--text", book, "--valid", book, "--init", model, "--prune", "--steps", "1", "--batch", "1"]
    assert run(*train, "--out", str(tmp_path / "out"), "--threads", "1")[0] == 0
    assert load(tmp_path / "out").config == dataclasses.replace(MODEL.config, kept_thresholds=())
