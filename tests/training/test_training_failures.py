"""What can go wrong in training is named, and the last checkpoint stays."""

import contextlib
import dataclasses
import errno
import math
import os
import pickle
import sys

import numpy as np
import pytest
from fault_tools import failing_at
from training_tools import failing, result, run_settings

from dcp_ref.checkpoints import files, weights
from dcp_ref.checkpoints.tokenizer import Tokenizer
from dcp_ref.config import Config
from dcp_ref.training import TrainingError, loop, run_files, step, train

ROW = b'{"step": 1, "cross_entropy": 1.5, "seconds": 2}'


@pytest.mark.parametrize("file", ["train.npy", "checkpoint.safetensors", "model.safetensors", "metrics.jsonl"])
def test_full_disk_leaves_the_last_checkpoint(text, unbroken, tmp_path, monkeypatch, file):
    out = tmp_path / "run"
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    target = {
        "train.npy": (np, "save", 1),
        "checkpoint.safetensors": (run_files, "save_state", 3),
        "model.safetensors": (files, "write_tensors", 2),
        "metrics.jsonl": (run_files, "append_metrics", 4),
    }[file]
    with monkeypatch.context() as patch:
        patch.setattr(*target[:2], failing(getattr(*target[:2]), target[2], full, after=False))
        with pytest.raises(TrainingError, match=r"No space left.*make room"):
            train(run_settings(text, out), progress=False)
    assert not list(out.glob(".*"))
    if file == "train.npy":
        assert [file.name for file in out.iterdir()] == ["settings.json"]
    else:
        assert run_files.load_state(out).step == 2
    train(run_settings(text, out), progress=False)
    assert result(out) == unbroken


def test_only_a_full_disk_is_called_full(text, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"cannot write .*Not a directory.*: put that right, then"):
        train(run_settings(text, tmp_path / "file" / "run"), progress=False)


@pytest.mark.parametrize(("error", "raised", "message"), [
    (BrokenPipeError(), BrokenPipeError, None), (KeyboardInterrupt(), KeyboardInterrupt, None),
    (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), TrainingError,
     "the progress cannot be shown .*No space left.*; all steps are saved: give the same command .* output elsewhere"),
    (OSError(errno.EIO, os.strerror(errno.EIO)), TrainingError, "cannot be shown"), (ValueError("x"), ValueError, "x")])
@pytest.mark.parametrize("what", ["line", "bar"])
def test_progress_that_cannot_be_shown_costs_no_step(text, unbroken, tmp_path, monkeypatch, what, error, raised,
                                                     message):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        if what == "line":
            patch.setattr(loop, "say", failing(loop.say, 1, error, after=False))
        else:
            patch.setattr(loop.Bar, "update", failing(lambda *_: None, 3, error, after=False))
        with pytest.raises(raised, match=message):
            train(run_settings(text, out), progress=False)
    assert run_files.load_state(out).step == 3  # one is saved every 2 steps
    train(run_settings(text, out), progress=False)
    assert result(out) == unbroken


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_closed_streams_show_nothing(text, unbroken, tmp_path, monkeypatch, stream):
    monkeypatch.setattr(sys, stream, None)
    train(run_settings(text, tmp_path / "run"))
    assert result(tmp_path / "run") == unbroken


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_loss_or_gradient_that_is_not_finite_stops_the_run(text, tmp_path, monkeypatch, bad, where):
    real, calls = step.batch_gradients, 0

    def spoiled(*args, **kwargs):
        nonlocal calls
        calls += 1
        loss, grads = real(*args, **kwargs)
        if calls == 6:
            (loss if where == "loss" else grads["h.0.attn.int_bias"])[0] = bad
        return loss, grads

    monkeypatch.setattr(step, "batch_gradients", spoiled)
    with pytest.raises(TrainingError, match=r"step 6: .*(nan|inf).*keeps the last"):
        train(run_settings(text, tmp_path / "run"), progress=False)
    state = run_files.load_state(tmp_path / "run")
    assert state.step == 4
    assert all(np.isfinite(p).all() for p in state.params.values())


@pytest.mark.parametrize(("micro_batch", "rate"), [(1, 1e3), (4, 1e8)])
def test_a_run_that_diverges_says_so_and_nothing_else(text, tmp_path, micro_batch, rate):
    """On threads and without; NumPy's warnings would be errors here."""
    with pytest.raises(TrainingError, match=r"step \d+: the loss is (nan|inf)"):
        train(run_settings(text, tmp_path / "run", learning_rate=rate, steps=20, micro_batch=micro_batch),
              progress=False)


@pytest.mark.parametrize("name", run_files.FILES)
def test_files_that_are_not_of_this_run_are_not_overwritten(text, tmp_path, name):
    (tmp_path / name).write_text("precious")
    with pytest.raises(ValueError, match=f"holds {name} but no settings"):
        train(run_settings(text, tmp_path), progress=False)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["precious"]


def test_model_and_checkpoint_are_of_one_step_whatever_fails(text, unbroken, tmp_path):
    """At every single call of the system while both are saved; and the run goes on from either."""
    out, n, reached, steps = tmp_path / "run", 0, True, set()
    train(run_settings(text, out, stop_at=3), progress=False)
    old = run_files.load_state(out)
    new = dataclasses.replace(old, step=4, params={name: p + 1 for name, p in old.params.items()})
    while reached:
        n += 1
        loop.save(out, old)
        with failing_at(n, failing(print, 1, KeyboardInterrupt())) as happened, contextlib.suppress(KeyboardInterrupt):
            loop.save(out, new)
        reached = happened()
        state, model = run_files.load_state(out), weights.load(out)
        assert all(np.array_equal(p, state.params[name]) for name, p in model.params.items())
        steps.add(state.step)
    assert steps == {3, 4} and n > 20
    loop.save(out, old)
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(os, "replace", failing(os.replace, 6, KeyboardInterrupt()))  # sets of 2 and of 1 within
        loop.save(out, old)
    assert (out / ".saved").exists()
    train(run_settings(text, out), progress=False)
    assert result(out) == unbroken and not list(out.glob(".*"))


@pytest.mark.parametrize("call", range(1, 13))
def test_a_kill_while_preparing_does_not_matter(text, unbroken, tmp_path, monkeypatch, call):
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(files.os, "replace", failing(os.replace, call, ZeroDivisionError()))
        train(run_settings(text, tmp_path / "run"), progress=False)
    train(run_settings(text, tmp_path / "run"), progress=False)
    assert result(tmp_path / "run") == unbroken


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("metrics.jsonl", content, rf"metrics\.jsonl, line {line}, cannot .*move the file away") for content, line in [
        (b"x\n", 1), (b"[1]\n", 1), (b'{"step": 1}\n', 1), (b"\xff\n", 1), (ROW + b"\n" + ROW[:9] + b"\n", 2)]]
    + [("settings.json", content, r"settings\.json is damaged .*: remove .*run, or begin in another")
       for content in (b"", b"[]", b"{}", b'{"out": ""}', b"\xff", b"[" * 99999)],
)
def test_damaged_files_are_named(text, tmp_path, name, content, message):
    train(run_settings(text, tmp_path / "run", steps=2), progress=False)
    state = run_files.load_state(tmp_path / "run")
    state.step = 1
    run_files.save_state(tmp_path / "run", state)
    (tmp_path / "run" / name).write_bytes(content)
    with pytest.raises(TrainingError, match=message):
        train(run_settings(text, tmp_path / "run", steps=2), progress=False)


def test_damaged_checkpoint_is_named(text, tmp_path):
    train(run_settings(text, tmp_path / "run", steps=1), progress=False)
    path = tmp_path / "run" / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TrainingError, match=r"checkpoint\.safetensors cannot be read"):
        train(run_settings(text, tmp_path / "run", steps=1), progress=False)


@pytest.mark.parametrize("name", ["train.npy", "valid.npy"])
@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "pickle", "matrix", "text"])
def test_damaged_tokens_are_named(text, tmp_path, name, damage):
    out, path = tmp_path / "run", tmp_path / "run" / name
    train(run_settings(text, out, steps=2), progress=False)
    state = run_files.load_state(out)
    state.step = 1
    run_files.save_state(out, state)
    {
        "gone": path.unlink,
        "empty": lambda: path.write_bytes(b""),
        "cut": lambda: path.write_bytes(path.read_bytes()[:-1]),
        "pickle": lambda: path.write_bytes(pickle.dumps([1])),
        "matrix": lambda: np.save(path, np.zeros((400, 1), np.uint16)),
        "text": lambda: np.save(path, np.array(["a"] * 400)),
    }[damage]()
    with pytest.raises(TrainingError, match=rf"{name} cannot be read .*start afresh"):
        train(run_settings(text, out, steps=2), progress=False)


def test_checkpoint_of_another_model_is_named(text, tmp_path):
    train(run_settings(text, tmp_path / "run", steps=1), progress=False)
    path = tmp_path / "run" / "checkpoint.safetensors"
    content = path.read_bytes()
    path.write_bytes(content.replace(rb'\"gpt2\"', rb'\"bert\"'))
    assert path.read_bytes() != content
    with pytest.raises(TrainingError, match=r"checkpoint\.safetensors cannot be read .*model_type is 'bert'"):
        train(run_settings(text, tmp_path / "run", steps=1), progress=False)


def test_init_without_a_tokenizer_is_refused(text, tmp_path):
    config = Config(vocab_size=300, n_positions=16, n_embd=8, n_layer=1, n_head=1)
    weights.save(weights.Model(config, weights.init_params(config, 0), None), tmp_path / "bare")
    with pytest.raises(ValueError, match=r"init: .* has no tokenizer"):
        train(run_settings(text, tmp_path / "run", init=str(tmp_path / "bare"), config=None), progress=False)
    assert Tokenizer.from_directory(tmp_path / "bare") is None


def test_a_run_whose_checkpoint_is_gone_keeps_its_model(text, tmp_path):
    out = tmp_path / "run"
    train(run_settings(text, out, steps=1), progress=False)
    before = (out / "model.safetensors").read_bytes()
    (out / "checkpoint.safetensors").unlink()
    with pytest.raises(TrainingError, match=r"checkpoint\.safetensors is gone"):
        train(run_settings(text, out, steps=1), progress=False)
    assert (out / "model.safetensors").read_bytes() == before
