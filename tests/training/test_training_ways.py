"""Every way to train the rule: each runs, has its effect, and resumes to the bit."""

import json

import numpy as np
import pytest
from training_tools import failing, result, run_settings

from dcp_ref.checkpoints import weights
from dcp_ref.checkpoints.weights import INTERACTION
from dcp_ref.training import loop, run_files, train

WAYS = {
    "from scratch": {},
    "from a dense model": {"init": True},
    "only the interaction weights": {"init": True, "only_interaction": True},
    "distillation": {"init": True, "teacher": True, "distill": 0.5},
    "distillation from scratch": {"teacher": True},
    "in depth": {"propagate_in_depth": True},
    "target": {"target_kept": 0.3},
    "thresholds": {"threshold_range": (-2.0, 1.0)},
    "all at once": {"init": True, "teacher": True, "target_kept": 0.3, "only_interaction": True, "alpha_share": 0.5,
                    "propagate_in_depth": True, "int_n_embd": 4},
}


@pytest.fixture(scope="module")
def dense(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("dense") / "model"
    train(run_settings(text, out, prune=False), progress=False)
    return str(out)


def settings_of(way, text, out, dense, **changes):
    changes = {name: dense if name in ("init", "teacher") else value for name, value in (way | changes).items()}
    return run_settings(text, out, **({"config": None} if "init" in way else {}), **changes)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_each_way_resumes_to_the_bit_with_any_number_of_threads(text, dense, tmp_path, monkeypatch, way):
    train(settings_of(way, text, tmp_path / "whole", dense), progress=False)
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(loop, "train_step", failing(loop.train_step, 6, ZeroDivisionError("killed")))
        train(settings_of(way, text, tmp_path / "broken", dense), progress=False)
    assert run_files.load_state(tmp_path / "broken").step == 4
    train(settings_of(way, text, tmp_path / "broken", dense, threads=1), progress=False)
    assert result(tmp_path / "broken") == result(tmp_path / "whole")
    model, rows = weights.load(tmp_path / "whole"), result(tmp_path / "whole")[2]
    assert model.config.int_n_embd == way.get("int_n_embd", 16)
    assert all(np.isfinite(row["loss"]) and row["alpha"] >= 1 and "gamma" in row for row in rows)
    assert all(("distillation" in row) == ("teacher" in way) for row in rows)
    assert 0 <= rows[-1]["share_kept"] < 1


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_interaction_weights_as_narrow_as_one(text, tmp_path, width):
    train(run_settings(text, tmp_path / "run", int_n_embd=width, steps=4), progress=False)
    model = weights.load(tmp_path / "run")
    assert model.params["h.0.attn.q_int.weight"].shape == (8, width)
    fresh = weights.init_params(model.config, 0)
    assert all((model.params[name] != fresh[name]).any() for name in fresh if INTERACTION.fullmatch(name))


def test_only_the_interaction_weights_change_in_a_run(text, dense, tmp_path):
    way = WAYS["only the interaction weights"]
    train(settings_of(way, text, tmp_path / "run", dense, weight_decay=0.5), progress=False)
    before, after = weights.load(dense).params, weights.load(tmp_path / "run").params
    assert all((after[name] == p).all() for name, p in before.items())
    assert (after["h.0.attn.int_bias"] != 2).all()
    state = run_files.load_state(tmp_path / "run")
    assert state.m.keys() == state.v.keys() == after.keys() - before.keys()


def test_distillation_draws_a_model_to_its_teacher(text, dense, tmp_path):
    changes = {"learning_rate": 3e-2, "steps": 60, "eval_every": 60}
    for name, weight in (("much", 20.0), ("little", 1e-9)):
        train(settings_of({"teacher": True}, text, tmp_path / name, dense, distill=weight, **changes), progress=False)
    much, little = (result(tmp_path / name)[2][-1]["distillation"] for name in ("much", "little"))
    assert much < little / 2


@pytest.mark.parametrize("target", [0.8, 0.2])
def test_the_share_wanted_is_kept(text, tmp_path, target):
    changes = {"steps": 300, "warmup": 10, "eval_every": 300, "eval_windows": 16, "save_every": 300}
    train(run_settings(text, tmp_path / "run", target_kept=target, **changes), progress=False)
    rows = result(tmp_path / "run")[2]
    assert rows[-1]["share_kept"] == pytest.approx(target, rel=0.25)
    assert len({row["gamma"] for row in rows}) > 200


@pytest.mark.parametrize(("kept", "target", "line"), [
    (0.13, 0.5, "wanted 50.0% of the context, kept 13.0%: more steps"), (1.0, 0.5, "kept 100.0%: more steps"),
    (0.41, 0.5, None), (0.59, 0.5, None), (0.06, 0.05, None), (0.065, 0.05, "wanted 5.0%"), (0.1, None, None)])
def test_a_share_far_from_the_one_wanted_is_told_at_the_end(text, tmp_path, monkeypatch, capsys, kept, target, line):
    monkeypatch.setattr(loop, "perplexity", lambda *_, **__: (9.0, kept))
    train(run_settings(text, tmp_path / "run", target_kept=target, steps=4))
    said = capsys.readouterr().out.splitlines()
    assert [row[:7] for row in said[:2]] == ["step 3:", "step 4:"] and len(said) == 2 + (line is not None)
    assert line is None or line in said[-1]


def test_a_run_that_is_to_go_on_is_not_judged(text, tmp_path, monkeypatch, capsys):
    """The share wanted falls with the steps: before the last one nothing is missing yet."""
    monkeypatch.setattr(loop, "perplexity", lambda *_, **__: (9.0, 0.9))
    train(run_settings(text, tmp_path / "run", target_kept=0.2, steps=4, stop_at=2))
    assert "wanted" not in capsys.readouterr().out
    train(run_settings(text, tmp_path / "run", target_kept=0.2, steps=4, stop_at=9))
    assert "wanted 20.0% of the context, kept 90.0%" in capsys.readouterr().out


def test_small_shares_are_told_apart():
    shares = (0, 0.2, 0.0012, 4.2e-4, 1e-9)
    assert [loop.percent(share) for share in shares] == ["0.0%", "20.0%", "0.1%", "0.042%", "1e-07%"]


def test_a_run_begun_before_an_option_existed_goes_on(text, unbroken, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(loop, "train_step", failing(loop.train_step, 4, ZeroDivisionError("killed")))
        train(run_settings(text, out), progress=False)
    stored = json.loads((out / "settings.json").read_text())
    for name in ("only_interaction", "teacher", "distill", "target_kept", "alpha_share", "plot", "teacher_sha256"):
        del stored[name]
    (out / "settings.json").write_text(json.dumps(stored))
    path = out / "checkpoint.safetensors"
    content = path.read_bytes()
    key = rb', \"steering\": [1.0, 0.881373587019543]'
    assert key in content
    path.write_bytes(content.replace(key, b" " * len(key)))
    with pytest.raises(ValueError, match=r"alpha_share is 0\.5, but .* begun with 1\.0"):
        train(run_settings(text, out, alpha_share=0.5), progress=False)
    train(run_settings(text, out), progress=False)
    assert result(out) == unbroken
