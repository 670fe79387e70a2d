"""Training runs: stopped in every way, they end as an unbroken one does."""

import dataclasses
import errno
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_tools import STEPS, failing, result, run_settings, write_text

from dcp_ref import Config
from dcp_ref.checkpoints import weights
from dcp_ref.training import TrainSettings, data, loop, perplexity, run_files, train


def test_training_lowers_the_loss_and_leaves_a_model(text, tmp_path):
    train(run_settings(text, tmp_path / "run", steps=40), progress=False)
    rows = result(tmp_path / "run")[2]
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert rows[-1]["tokens"] == 40 * 4 * 16
    assert np.mean([r["loss"] for r in rows[-5:]]) < np.mean([r["loss"] for r in rows[:5]]) - 0.5
    assert [r["step"] for r in rows if "valid_perplexity" in r] == [*range(3, 40, 3), 40]
    assert (rows[0]["alpha"], rows[-1]["alpha"]) == (1.0, 8.0)
    model = weights.load(tmp_path / "run")
    assert model.config.vocab_size == model.tokenizer.vocab_size == 270
    assert model.config.eos_token_id == model.tokenizer.eos_id
    assert model.config.int_n_embd == 16
    valid = np.load(tmp_path / "run" / "valid.npy")
    assert perplexity(model.params, model.config, valid, 16, 3)[0] == pytest.approx(rows[-1]["valid_perplexity"])


def test_it_trains_on_one_text_and_validates_on_another(text, tmp_path):
    out, other = tmp_path / "run", write_text(tmp_path / "other.txt", seed=1)
    train(run_settings(text, out, valid=(other,)), progress=False)
    model, rows = weights.load(out), result(out)[2]
    ids = {}
    for name, path in (("train.npy", text), ("valid.npy", other)):
        documents = [document.strip("\n") for document in Path(path).read_text().split("<|endoftext|>")]
        ids[name] = np.concatenate([[*model.tokenizer.encode(d), model.tokenizer.eos_id] for d in documents])
        np.testing.assert_array_equal(np.load(out / name), ids[name])
    measured = {name: perplexity(model.params, model.config, ids[name], 16, 3) for name in ids}
    assert (rows[-1]["valid_perplexity"], rows[-1]["share_kept"]) == pytest.approx(measured["valid.npy"])
    assert measured["train.npy"] != pytest.approx(measured["valid.npy"])


def test_pruned_run_starts_from_a_dense_one(text, tmp_path, capsys):
    train(run_settings(text, tmp_path / "dense", prune=False, steps=1))
    assert "context kept 100.0%" in capsys.readouterr().out
    dense = weights.load(tmp_path / "dense")
    assert dense.config.int_n_embd is None
    changes = dict(config=None, int_n_embd=4, propagate_in_depth=True, int_delay=5, steps=1, learning_rate=1e-30)
    train(run_settings(text, tmp_path / "pruned", init=str(tmp_path / "dense"), **changes), progress=False)
    pruned = weights.load(tmp_path / "pruned")
    assert dense.config.int_delay == 0
    assert pruned.config == dataclasses.replace(dense.config, int_n_embd=4, propagate_in_depth=True, int_delay=5)
    assert all((pruned.params[name] == p).all() for name, p in dense.params.items())
    assert pruned.params["h.1.attn.int_bias"] == 2
    assert pruned.tokenizer.encode("the old sea") == dense.tokenizer.encode("the old sea")
    train(run_settings(text, tmp_path / "again", init=str(tmp_path / "pruned"), config=None, steps=1), progress=False)
    assert weights.load(tmp_path / "again").config == pruned.config  # its own width, depth, delay, not the settings'


@pytest.mark.parametrize(("own", "given", "delay"), [(0, None, 0), (3, None, 3), (3, 0, 0), (0, 2, 2), (3, 2, 2)])
@pytest.mark.parametrize("rank", [None, 4])
def test_the_delay_that_is_given_else_the_models_own(own, given, delay, rank):
    config = Config(int_n_embd=rank, int_delay=own)
    assert TrainSettings(text=("a",), out="b", prune=True, int_delay=given).with_pruning(config).int_delay == delay


def test_a_delay_is_trained_with(text, tmp_path):
    """With one as long as the context nothing is ever dropped, and the scores have nothing to learn from."""
    train(run_settings(text, tmp_path / "run", int_delay=16, steps=2, weight_decay=0.0), progress=False)
    model, rows = weights.load(tmp_path / "run"), result(tmp_path / "run")[2]
    assert model.config.int_delay == 16 and {row["share_kept"] for row in rows if "share_kept" in row} == {1}
    assert {row["sparsity"] for row in rows if "sparsity" in row} == {1}
    assert model.params["h.0.attn.int_bias"] == 2


def test_number_of_threads_does_not_change_the_result(text, tmp_path, unbroken):
    train(run_settings(text, tmp_path / "run", threads=1), progress=False)
    assert result(tmp_path / "run") == unbroken


@settings(max_examples=10)
@given(stops=st.lists(st.integers(1, STEPS), max_size=3), where=st.sampled_from(["train_step", "append", "save"]))
def test_resumed_run_equals_an_unbroken_one(text, unbroken, tmp_path_factory, stops, where):
    """An exception at a drawn step, after it was computed, after its row was written, or between model and state."""
    out = tmp_path_factory.mktemp("broken") / "run"
    owner, name = {
        "train_step": (loop, "train_step"),
        "append": (run_files, "append_metrics"),
        "save": (run_files, "save_state"),
    }[where]
    for stop in stops:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, failing(getattr(owner, name), stop, ZeroDivisionError("killed")))
            try:
                train(run_settings(text, out), progress=False)
            except ZeroDivisionError:
                continue
    train(run_settings(text, out), progress=False)
    assert result(out) == unbroken


def test_a_run_may_end_early_and_go_on(text, unbroken, tmp_path):
    out = tmp_path / "run"
    for stop_at in (3, 3, 6):
        train(run_settings(text, out, stop_at=stop_at), progress=False)
        assert result(out)[2] == unbroken[2][:stop_at] and weights.load(out).tokenizer is not None
    train(run_settings(text, out), progress=False)
    assert result(out) == unbroken


def test_run_killed_by_the_system_resumes_to_the_same_result(text, unbroken, tmp_path):
    out = tmp_path / "run"
    code = f"from dcp_ref.training import *; train(TrainSettings(**{run_settings(text, out).to_dict()!r}))"
    rows = 0
    for wanted in (1, 4):
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL) as process:
            while rows < wanted and process.poll() is None:
                time.sleep(0.002)
                rows = (out / "metrics.jsonl").read_bytes().count(b"\n") if (out / "metrics.jsonl").exists() else 0
            process.send_signal(signal.SIGKILL)  # no lock outlives it
    train(run_settings(text, out), progress=False)
    assert result(out) == unbroken
    assert not list(out.glob(".*"))


def test_what_a_kill_leaves_half_written_is_cleared(text, unbroken, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", failing(loop.train_step, 4, ZeroDivisionError("killed"), after=False))
        with pytest.raises(ZeroDivisionError):
            train(run_settings(text, out), progress=False)
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "tok')
    (out / ".saving-x").mkdir()
    (out / ".saving-x" / "checkpoint.safetensors").write_bytes(b"half")
    train(run_settings(text, out), progress=False)
    assert result(out) == unbroken
    assert not list(out.glob(".*"))


def test_finished_run_is_left_alone(text, tmp_path, capsys):
    train(run_settings(text, tmp_path / "run", steps=2), progress=False)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    train(run_settings(text, tmp_path / "run", steps=2, threads=1))
    assert "already finished (2 steps)" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}


@pytest.mark.parametrize(("owner", "name"), [(data, "read_texts"), (loop, "train_step")])
def test_a_second_run_into_the_same_directory_is_refused(text, unbroken, tmp_path, monkeypatch, owner, name):
    """While the first prepares, and while it trains; the first goes on, and nothing is left locked."""
    out, real, refused = tmp_path / "run", getattr(owner, name), []

    def while_running(*args):
        if not refused:
            with pytest.raises(ValueError, match=r"another run is training into .*run: wait for its end") as error:
                train(run_settings(text, out), progress=False)
            refused.append(error)
        return real(*args)

    monkeypatch.setattr(owner, name, while_running)
    train(run_settings(text, out), progress=False)
    assert refused and result(out) == unbroken
    train(run_settings(text, out), progress=False)


NO_LOCKS = types.SimpleNamespace(flock=failing(print, 1, OSError(errno.EBADF, ""), after=False), LOCK_EX=2, LOCK_NB=4)


@pytest.mark.parametrize("fcntl", [None, NO_LOCKS])
def test_where_nothing_can_be_locked_a_run_goes_on(text, unbroken, tmp_path, monkeypatch, fcntl):
    monkeypatch.setattr(run_files, "fcntl", fcntl)
    train(run_settings(text, tmp_path / "run"), progress=False)
    assert result(tmp_path / "run") == unbroken


def test_a_run_that_is_refused_leaves_none_of_the_directories_that_it_made(text, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="too few"):
        train(run_settings(text, tmp_path / "mine" / "new" / "run", config=None, valid=()), progress=False)
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]
