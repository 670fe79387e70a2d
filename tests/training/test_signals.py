"""Signals that ask a run to stop: no step is lost, and the program ends as programs do that such a signal ends."""

import os
import signal
import subprocess
import sys
import threading

import pytest
from training_tools import failing, result, run_settings

from dcp_ref.training import TrainingError, loop, train
from dcp_ref.training.run_files import load_state
from dcp_ref.training.signals import SIGNALS, Stopped, between_steps

OTHERS = [number for number in SIGNALS if number != signal.SIGINT]
by_name = pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)


def sent_in(step, number):
    """train_step, during which the signal comes, in that step."""
    real = loop.train_step

    def sending(*args):
        if args[1].step == step - 1:
            os.kill(os.getpid(), number)
        return real(*args)

    return sending


@pytest.fixture(autouse=True)
def handlers():
    """They are afterwards what they were before."""
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    after = [signal.getsignal(number) for number in SIGNALS]
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)
    assert after == before


def stopped_by(number):
    if number == signal.SIGINT:
        return pytest.raises(KeyboardInterrupt)
    return pytest.raises(Stopped, check=lambda stop: stop.code == 128 + number)


@by_name
@pytest.mark.parametrize("step", [5, 8])
def test_the_step_under_way_is_saved(text, unbroken, tmp_path, monkeypatch, number, step):
    """Also in the last step, when nothing is left to do but to stop."""
    with monkeypatch.context() as patch, stopped_by(number):
        patch.setattr(loop, "train_step", sent_in(step, number))
        train(run_settings(text, tmp_path / "run"), progress=False)
    assert load_state(tmp_path / "run").step == step
    train(run_settings(text, tmp_path / "run"), progress=False)
    assert result(tmp_path / "run") == unbroken


@pytest.mark.parametrize("where", ["perplexity", "shown", "save"])
def test_wherever_between_two_steps_it_comes_all_steps_are_saved(text, unbroken, tmp_path, monkeypatch, where):
    real, out = getattr(loop, where), tmp_path / "run"

    def sending(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*args, **kwargs)

    with monkeypatch.context() as patch, stopped_by(signal.SIGTERM):
        patch.setattr(loop, where, sending)
        train(run_settings(text, out), progress=False)
    assert load_state(out).step == len(result(out)[2])
    train(run_settings(text, out), progress=False)
    assert result(out) == unbroken


def test_what_is_ignored_stays_ignored(text, unbroken, tmp_path, monkeypatch):
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    monkeypatch.setattr(loop, "train_step", sent_in(5, signal.SIGHUP))
    train(run_settings(text, tmp_path / "run"), progress=False)
    assert result(tmp_path / "run") == unbroken
    assert signal.signal(signal.SIGHUP, before) == signal.SIG_IGN


@pytest.mark.parametrize("number", OTHERS, ids=lambda number: number.name)
def test_a_handler_of_the_callers_is_called_when_all_is_saved(number):
    called = []
    before = signal.signal(number, lambda *args: called.append(args[0]))
    with pytest.raises(Stopped), between_steps() as noted:
        os.kill(os.getpid(), number)
        assert noted == [number] and not called
    assert called == [number]
    signal.signal(number, lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError), between_steps():
        os.kill(os.getpid(), number)
    signal.signal(number, before)


def test_an_error_inside_is_what_is_raised(text, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "train_step", sent_in(2, signal.SIGTERM))
    monkeypatch.setattr(loop, "save", failing(loop.save, 1, TrainingError("no room"), after=False))
    with pytest.raises(TrainingError, match="no room"):
        train(run_settings(text, tmp_path / "run"), progress=False)


def test_in_another_thread_signals_are_left_alone(text, unbroken, tmp_path, monkeypatch):
    before, seen, real = [signal.getsignal(number) for number in SIGNALS], [], loop.train_step
    monkeypatch.setattr(loop, "train_step", lambda *args: seen.append([signal.getsignal(number) for number in SIGNALS])
                        or real(*args))
    thread = threading.Thread(target=train, args=[run_settings(text, tmp_path / "run"), False])
    thread.start()
    thread.join()
    assert result(tmp_path / "run") == unbroken and seen == [before] * 8


@by_name
def test_the_command_saves_and_exits_as_is_usual(text, unbroken, tmp_path, number):
    out = tmp_path / "run"
    settings = run_settings(text, out)
    options = [option for name in ("text", "valid") for option in (f"--{name}", text)]
    for name in ("out", "config", "vocab_size", "steps", "batch", "learning_rate", "warmup", "eval_every",
                 "eval_windows", "save_every", "threads"):
        options += [f"--{name.replace('_', '-')}", str(getattr(settings, name))]
    code = f"""if True:
        import os, sys
        from dcp_ref.cli import command as cli
        from dcp_ref.training import loop
        def sending(*args, real=loop.train_step):
            if args[1].step == 4:
                os.kill(os.getpid(), {int(number)})
            return real(*args)
        loop.train_step = sending
        sys.exit(cli.main(["train", "--prune", *sys.argv[1:]]))
    """
    done = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 128 + number, done.stderr
    assert "give the same command to resume" in done.stderr and "Traceback" not in done.stderr
    assert load_state(out).step == 5
    train(settings, progress=False)
    assert result(out) == unbroken
