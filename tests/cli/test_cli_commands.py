"""The other commands: train, download, info; and what the command says to those who mistype it."""

import dataclasses
import json
import os
import sys
import types

import pytest
from cli_tools import assert_refused, call, process_of
from text_models import text_model
from training_tools import SHAPE, failing, write_text

from dcp_ref import __version__
from dcp_ref.checkpoints import weights
from dcp_ref.cli import command as cli
from dcp_ref.cli import train
from dcp_ref.training import TrainingError, TrainSettings

MODEL = text_model()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk():
    with open("/dev/full", "w") as full:
        process = process_of("info", stdout=full)
    _, err = process.communicate()
    assert process.returncode == 1
    assert err.startswith(b"dcp-ref info: ") and err.count(b"\n") == 1


def test_info(capsys):
    code, out, err = call(capsys, "info")
    facts = json.loads(call(capsys, "info", "--json")[1])
    assert (code, err) == (0, "")
    assert out.splitlines() == [f"{name:12} {value}" for name, value in facts.items()]
    assert facts["dcp-ref"] == __version__ and {"backend", "simd", "threads", "python", "numpy"} < facts.keys()


def test_help(capsys):
    code, out, _ = call(capsys)
    assert code == 0 and "dcp-ref generate" in out
    for command in ("generate", "train", "evaluate", "download", "bench", "info"):
        assert command in out
        with pytest.raises(SystemExit, match="0"):
            cli.main([command, "--help"])
        assert "usage: dcp-ref " + command in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["genrate"], ["generate", "x", "--temprature", "1"], ["train"], ["download"]])
def test_typos_are_argparse_s_to_explain(capsys, arguments):
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert "error: " in capsys.readouterr().err.splitlines()[-1]


def test_train_takes_every_setting_as_an_option(capsys, monkeypatch):
    given = []
    monkeypatch.setattr(train, "train", given.append)
    assert call(capsys, "train", "--text", "a", "--out", "m")[0] == 0
    assert given.pop() == TrainSettings(text=("a",), out="m")
    changed = dict(
        text=("a", "b", "c"), out="m", valid=("d", "e"), init="i", prune=True, int_n_embd=3, propagate_in_depth=True,
        int_delay=4, vocab_size=300, context=9, steps=3, batch=8, micro_batch=2, learning_rate=0.5, warmup=1,
        weight_decay=0.25, clip=2.5, gamma=0.75, seed=9, eval_every=4, eval_windows=6, save_every=7, threads=5,
        only_interaction=True, teacher="t", distill=0.5, target_kept=0.25, alpha_share=0.5, plot=True, stop_at=2,
    )
    assert {f.name for f in dataclasses.fields(TrainSettings)} == {*changed, "config", "threshold_range"}
    arguments = ["--text", "a", "b", "--text", "c", "--valid", "d", "--valid", "e"]
    for name, value in changed.items():
        if not isinstance(value, tuple):
            arguments += ["--" + name.replace("_", "-"), *[str(value)] * (value is not True)]
    assert call(capsys, "train", *arguments)[0] == 0
    assert given.pop() == TrainSettings(**changed)
    assert call(capsys, "train", "--text", "a", "--out", "m", "--config", "{}")[0] == 0
    assert given.pop().config == "{}"
    assert call(capsys, "train", "--text", "a", "--out", "m", "--prune", "--threshold-range", "-5", "0.8")[0] == 0
    assert given.pop().threshold_range == (-5.0, 0.8)


def test_train_and_use_the_model(capsys, tmp_path):
    book, out = write_text(tmp_path / "book.txt"), tmp_path / "my model"
    arguments = ["train", "--text", book, "--valid", book, "--out", str(out), "--config", SHAPE, "--prune"]
    arguments += ["--vocab-size", "270", "--steps", "3", "--batch", "4", "--eval-every", "2", "--eval-windows", "2"]
    code, text, _ = call(capsys, *arguments)
    lines = text.splitlines()
    assert code == 0 and [line[:7] for line in lines] == ["step 2:", "step 3:", "ready: "]
    assert f"--model '{out}'" in lines[-1]
    assert call(capsys, "generate", "the sea", "--model", str(out), "--max-new-tokens", "3")[0] == 0
    assert_refused(call(capsys, *arguments, "--seed", "8"), "seed is 8")
    assert_refused(call(capsys, "train", "--text", "nowhere", "--out", f"{out}2"), "nowhere: cannot be read")


def test_train_stopped(capsys, monkeypatch):
    arguments = ["--text", "a", "--out", "m"]
    monkeypatch.setattr(train, "train", failing(print, 1, KeyboardInterrupt(), after=False))
    assert_refused(call(capsys, "train", *arguments), "interrupted; give the same command to resume", code=130)
    monkeypatch.setattr(train, "train", failing(print, 1, TrainingError("the loss is nan"), after=False))
    assert_refused(call(capsys, "train", *arguments), "the loss is nan", code=1)


def test_download(capsys, monkeypatch, tmp_path):
    asked = []

    def snapshot_download(name, revision, local_dir=None, allow_patterns=(), local_files_only=False):
        if local_files_only:
            raise ValueError("not in the cache")
        asked.append((name, revision))
        assert set(allow_patterns) >= {
            "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json",
            "merges.txt", "added_tokens.json", "special_tokens_map.json", "spiece.model", "model-*.safetensors"}
        if name == "openai/gpt3":
            raise OSError("404 Client Error.\n\nNot Found")
        if name != "empty":
            weights.save(MODEL, local_dir)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(snapshot_download=snapshot_download))
    code, out, _ = call(capsys, "download", "openai/gpt2")
    assert code == 0 and out.startswith("ready: ") and out.endswith("--model gpt2\n")
    assert weights.load(tmp_path / "gpt2").config == MODEL.config
    assert call(capsys, "download", "gpt2", "--out", "here")[0] == 0 and (tmp_path / "here").is_dir()
    assert_refused(call(capsys, "download", "openai/gpt3"), "openai/gpt3: 404 Client Error. Not Found", code=1)
    assert call(capsys, "download", "empty")[0] == 2
    assert call(capsys, "download", "openai/gpt2@v1")[1].endswith("--model gpt2\n")
    assert asked == [("openai/gpt2", None), ("gpt2", None), ("openai/gpt3", None), ("empty", None),
                     ("openai/gpt2", "v1")]
    assert_refused(call(capsys, "download", "open ai/gpt2"), "'open ai/gpt2' is no name of the Hugging Face hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert_refused(call(capsys, "download", "gpt2"), "huggingface_hub is missing: pip install huggingface_hub")
