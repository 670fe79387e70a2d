"""Settings and texts that cannot work: each is named, before anything is written."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
from training_tools import SHAPE, run_settings

from dcp_ref import Config, load
from dcp_ref.training import train


@pytest.mark.parametrize("change", [{"steps": 9}, {"seed": 1}, {"gamma": 0.2}, {"micro_batch": 2}, {"prune": False},
                                    {"target_kept": 0.3}, {"threshold_range": (-1, 1)}, {"alpha_share": 0.5},
                                    {"int_delay": 1}])
def test_other_settings_are_refused_on_resuming(text, tmp_path, change):
    train(run_settings(text, tmp_path / "run", steps=1), progress=False)
    (name,) = change
    with pytest.raises(ValueError, match=f"{name} is .* was begun with .* another out"):
        train(run_settings(text, tmp_path / "run", **({"steps": 1} | change)), progress=False)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("text: no file", {"text": ()}), ("text must be a list", {"text": "a.txt"}), ("steps", {"steps": 0}),
        ("batch", {"batch": -1}), ("learning_rate", {"learning_rate": 0.0}), ("gamma", {"gamma": -0.1}),
        ("gamma", {"gamma": math.nan}), ("micro_batch", {"micro_batch": 3}), ("vocab_size", {"vocab_size": 256}),
        ("context", {"context": 1}), ("context", {"context": 17}), ("context", {"context": 0}),
        ("nowhere", {"text": ("nowhere.txt",)}), ("nowhere", {"valid": ("nowhere.txt",)}), ("threads", {"threads": 0}),
        ("stop_at", {"stop_at": 0}),
        ("nowhere", {"config": "nowhere.json"}), ("config", {"config": "{"}), ("n_embd", {"config": '{"n_embd": 7}'}),
        ("model_type is 'llama'", {"config": '{"model_type": "llama"}'}),
        ("config", {"config": "no.json"}), ("nowhere", {"init": "nowhere", "config": None}),
        ("out: the path is empty; give the directory", {"out": ""}), ("int_delay must be", {"int_delay": -1}),
        ("int_delay must be of type int", {"int_delay": 1.0}),
        ("prune: tiny has interaction", {"prune": False, "init": "tiny", "config": None, "context": 16}),
        ("prune: the config has interaction", {"prune": False, "config": '{"int_n_embd": 3}'}),
        ("context: the model has 1 position", {"config": '{"n_positions": 1}'}),
        ("steps must be of type int, not 2.0", {"steps": 2.0}), ("batch must be of type int, not '4'", {"batch": "4"}),
        ("seed must be of type int, not 1.5", {"seed": 1.5}), ("threads must be of type int", {"threads": 1.5}),
        ("context must be of type int", {"context": 16.0}), ("warmup must be of type int, not None", {"warmup": None}),
        ("gamma must be of type float, not 'x'", {"gamma": "x"}),
        ("clip must be of type float, not None", {"clip": None}), ("prune must be of type bool", {"prune": "no"}),
        *((f"{name}: .* without prune; give both", {"prune": False, name: value}) for name, value in [
            ("int_n_embd", 4), ("propagate_in_depth", True), ("int_delay", 1), ("only_interaction", True),
            ("gamma", 0.2), ("target_kept", 0.2), ("alpha_share", 0.5)]),
        ("only_interaction: without init .* give both", {"only_interaction": True}),
        ("int_n_embd is 4, but tiny .* of width 16; leave it out", {"int_n_embd": 4, "init": "tiny", "config": None}),
        ("int_n_embd is 4, but the config .* of width 3", {"int_n_embd": 4, "config": '{"int_n_embd": 3}'}),
        ("vocab_size is 270, but the tokenizer of tiny has 4096; leave one out", {"init": "tiny", "config": None}),
        ("no field 'n_layers' .*'n_layer'.*, 'hidden' .*'hidden_size'", {"config": '{"n_layers": 2, "hidden": 2}'}),
        ("target_kept must be between 0 and 1, not 0", {"target_kept": 0}), ("target_kept", {"target_kept": 1.0}),
        ("target_kept", {"target_kept": math.nan}), ("target_kept must be of type float", {"target_kept": "x"}),
        ("gamma: with target_kept .* positive", {"target_kept": 0.2, "gamma": 0.0}),
        ("threshold_range must be two numbers", {"threshold_range": (1.0, -1.0)}),
        ("threshold_range must be two numbers", {"threshold_range": (-math.inf, 1.0)}),
        ("threshold_range must be two numbers", {"threshold_range": (1.0,)}),
        ("threshold_range must be two numbers", {"threshold_range": "01"}),
        ("target_kept: a range of thresholds", {"threshold_range": (-1, 1), "target_kept": 0.2}),
        ("micro_batch must be 1, not 2", {"threshold_range": (-1, 1), "micro_batch": 2}),
        ("alpha_share", {"alpha_share": 0.0}), ("alpha_share must be at most 1", {"alpha_share": 1.5}),
        ("distill: .* without teacher", {"distill": 0.5}), ("nowhere", {"teacher": "nowhere"}),
        ("distill must be a positive", {"distill": 0.0, "teacher": "nowhere"}),
        ("teacher: tiny has interaction weights .* a dense model", {"teacher": "tiny"}),
        ("config: the model in init", {"init": "tiny"}), ("learning_rate", {"learning_rate": math.inf}),
    ],
    ids=str,
)
def test_bad_settings_are_named_before_anything_is_written(text, tmp_path, message, change):
    with pytest.raises(ValueError, match=message):
        train(run_settings(text, **({"out": tmp_path / "run"} | change)), progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"good \xff bad", "not UTF-8 at byte 5"), (b"short", "text: .*bad.txt: .* too few .* more text"),
     (b"", "text: .*bad.txt: 0 tokens are too few")],
)
def test_bad_text_is_named_before_anything_is_written(tmp_path, content, message):
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        train(run_settings(str(path), tmp_path / "run"), progress=False)
    assert not (tmp_path / "run").exists()


def test_text_too_short_to_hold_out_a_part_is_refused(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the old man " * 30)
    with pytest.raises(ValueError, match=r"valid: the last 1% of the text, .* too few .* give valid, files .* smaller"):
        train(run_settings(str(path), tmp_path / "run", valid=()), progress=False)


def test_what_is_given_twice_and_is_the_same_is_taken(text, tmp_path):
    config = Config(n_layer=1, n_head=1, n_embd=4, n_positions=16, int_n_embd=3, vocab_size=270, eos_token_id=0)
    changes = {"int_n_embd": 3, "steps": 1}
    train(run_settings(text, tmp_path / "run", config=json.dumps(config.to_dict()), **changes), progress=False)
    assert load(tmp_path / "run").config == config
    train(run_settings(text, tmp_path / "next", init=tmp_path / "run", config=None, **changes), progress=False)
    assert load(tmp_path / "next").config == config


def test_a_config_file_may_have_fields_of_other_programs(text, tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"n_layer": 1, "n_head": 1, "n_embd": 4, "n_positions": 16, "attn_pdrop": 0.1}')
    train(run_settings(text, tmp_path / "run", config=path, steps=1), progress=False)
    assert load(tmp_path / "run").config.n_layer == 1


def test_a_short_file_to_validate_on_is_named(text, tmp_path):
    (tmp_path / "short.txt").write_text("the sea")
    with pytest.raises(ValueError, match=r"valid: .*short\.txt: .* tokens are too few .* give more text"):
        train(run_settings(text, tmp_path / "run", valid=(tmp_path / "short.txt",)), progress=False)


def test_a_run_goes_on_from_another_working_directory(text, tmp_path, monkeypatch):
    """By relative paths from there, and by absolute ones; those of an older run are as they were given."""
    for name in ("home", "home/sub"):
        (tmp_path / name).mkdir()
    home, sub = tmp_path / "home", tmp_path / "home" / "sub"
    (home / "book.txt").write_text(Path(text).read_text())
    (home / "shape.json").write_text(SHAPE)
    (sub / "book.txt").write_text("another book")
    monkeypatch.chdir(home)
    train(run_settings("book.txt", Path("run"), config="shape.json", prune=False, steps=1), progress=False)
    files = {"text": ("book.txt",), "valid": ("book.txt",), "config": "shape.json", "out": "run"}
    stored = json.loads(Path("run/settings.json").read_text())
    assert [stored[name] for name in ("text", "valid", "config")] == [
        [f"{home}/book.txt"], [f"{home}/book.txt"], f"{home}/shape.json"]
    monkeypatch.chdir(sub)
    up = {name: tuple(f"../{path}" for path in value) if name in ("text", "valid") else f"../{value}"
          for name, value in files.items()}
    settings = dataclasses.replace(run_settings("x", Path("x"), prune=False, steps=1), **up)
    train(settings, progress=False)
    train(dataclasses.replace(settings, text=(f"{home}/book.txt",)), progress=False)
    with pytest.raises(ValueError, match=r"text is .*sub/book\.txt.* begun with .*home/book\.txt"):
        train(dataclasses.replace(settings, text=("book.txt",)), progress=False)
    (home / "run" / "settings.json").write_text(json.dumps(stored | {
        "text": ["book.txt"], "valid": ["book.txt"], "config": "shape.json"}))
    monkeypatch.chdir(home)
    train(dataclasses.replace(settings, **files), progress=False)


def test_a_run_from_a_shipped_model_goes_on_from_another_working_directory(text, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    settings = run_settings(text, tmp_path / "run", init="tiny", config=None, context=16, vocab_size=4096, steps=1)
    train(settings, progress=False)
    monkeypatch.chdir(tmp_path / "elsewhere")
    train(settings, progress=False)


def test_paths_may_be_spelt_in_another_way_on_resuming(text, tmp_path, monkeypatch):
    directory, name = Path(text).parent, Path(text).name
    train(run_settings(text, tmp_path / "start", steps=1), progress=False)
    settings = run_settings(text, tmp_path / "run", init=tmp_path / "start", config=None, steps=1)
    train(settings, progress=False)
    monkeypatch.chdir(directory)
    start = f"{tmp_path}/./start/"
    train(dataclasses.replace(settings, text=(name,), valid=("./" + name,), init=start), progress=False)
    with pytest.raises(ValueError, match=r"text is .*begun with"):
        train(dataclasses.replace(settings, text=("../" + name,)), progress=False)
    with pytest.raises(ValueError, match="init is None"):
        train(dataclasses.replace(settings, init=None), progress=False)
