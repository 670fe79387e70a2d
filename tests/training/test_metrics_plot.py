"""The picture of a run."""

import sys

import pytest
from training_tools import failing, result, run_settings

from dcp_ref.training import TrainingError, loop, metrics_plot, train
from dcp_ref.training.run_files import load_state


@pytest.mark.parametrize("part", ["matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"])
def test_without_a_matplotlib_that_works_a_run_is_refused(text, tmp_path, monkeypatch, part):
    monkeypatch.setitem(sys.modules, part, None)
    with pytest.raises(ValueError, match=r"plot: matplotlib cannot be imported \(.*\): pip install .*or go on without"):
        train(run_settings(text, tmp_path / "run", plot=True), progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("call", [1, 2])
def test_what_fails_to_draw_costs_no_steps(text, unbroken, tmp_path, monkeypatch, call):
    pytest.importorskip("matplotlib")
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(metrics_plot, "draw", failing(metrics_plot.draw, call, ZeroDivisionError(), after=False))
        train(run_settings(text, tmp_path / "run", plot=True), progress=False)
    assert load_state(tmp_path / "run").step == 3 * call  # as many as were taken; one is saved every 2
    train(run_settings(text, tmp_path / "run"), progress=False)
    assert result(tmp_path / "run") == unbroken


def test_running_means():
    rows = [{"step": i + 1, "loss": float(i)} for i in range(60)]
    steps, means = metrics_plot._smoothed(rows, "loss")
    assert steps == list(range(1, 61))
    assert means[:4] == [0, 0.5, 1, 2] and means[-1] == 58


@pytest.mark.parametrize("changes", [{"prune": False}, {"target_kept": 0.5}], ids=["dense", "pruned"])
def test_a_run_draws_its_picture_and_is_the_same(text, unbroken, tmp_path, monkeypatch, changes):
    pytest.importorskip("matplotlib")
    drawn, real = [], metrics_plot.draw
    monkeypatch.setattr(metrics_plot, "draw", lambda *args: drawn.append(len(result(args[0])[2])) or real(*args))
    train(run_settings(text, tmp_path / "run", plot=True, **changes), progress=False)
    assert drawn == [3, 6, 8]  # at each validation
    picture = tmp_path / "run" / "metrics.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    train(run_settings(text, tmp_path / "plain", **changes), progress=False)
    assert result(tmp_path / "plain") == result(tmp_path / "run")
    assert not (tmp_path / "plain" / "metrics.png").exists()
    train(run_settings(text, tmp_path / "plain", plot=True, **changes), progress=False)  # finished: only the picture
    assert (tmp_path / "plain" / "metrics.png").exists()


def test_a_plot_may_be_asked_for_on_resuming(text, unbroken, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(loop, "train_step", failing(loop.train_step, 4, ZeroDivisionError("killed")))
        train(run_settings(text, tmp_path / "run"), progress=False)
    train(run_settings(text, tmp_path / "run", plot=True), progress=False)
    assert result(tmp_path / "run") == unbroken and (tmp_path / "run" / "metrics.png").exists()


@pytest.mark.parametrize(("content", "message"), [(None, "is missing .*nothing to draw, go on without plot"),
                                                  (b"x\n", r"line 1, cannot be read")])
def test_a_finished_run_without_metrics_to_draw(text, tmp_path, content, message):
    pytest.importorskip("matplotlib")
    train(run_settings(text, tmp_path / "run", steps=1), progress=False)
    path = tmp_path / "run" / "metrics.jsonl"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(TrainingError, match=r"metrics\.jsonl.*" + message):
        train(run_settings(text, tmp_path / "run", steps=1, plot=True), progress=False)
