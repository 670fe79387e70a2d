"""Teachers that cannot teach are named, before anything is written and on resuming."""

import dataclasses
import shutil

import pytest
from training_tools import run_settings, write_text

from dcp_ref.checkpoints import weights
from dcp_ref.checkpoints.tokenizer import Tokenizer
from dcp_ref.training import run_files, teacher, train


@pytest.fixture(scope="module")
def dense(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("dense") / "model"
    train(run_settings(text, out, prune=False, steps=1), progress=False)
    return out


def refused(settings, message):
    with pytest.raises(ValueError, match=message):
        train(settings, progress=False)


def test_a_teacher_of_another_vocabulary(dense, tmp_path):
    book = write_text(tmp_path / "other.txt")
    tokenizer = Tokenizer.train(["eleven elves levelled hills " * 9], 270)
    other = weights.load(dense)
    assert tokenizer.vocab_size == other.config.vocab_size
    weights.save(other._replace(tokenizer=tokenizer), tmp_path / "other")
    refused(run_settings(book, tmp_path / "run", init=dense, config=None, teacher=tmp_path / "other"),
            "teacher: .*other has another vocabulary .* same tokenizer")
    assert not (tmp_path / "run").exists()


def test_a_teacher_with_more_ids_than_the_student(text, dense, tmp_path):
    model = weights.load(dense)
    config = dataclasses.replace(model.config, vocab_size=model.config.vocab_size + 2)
    weights.save(weights.Model(config, weights.init_params(config, 0), model.tokenizer), tmp_path / "padded")
    refused(run_settings(text, tmp_path / "run", init=dense, config=None, teacher=tmp_path / "padded"),
            "another vocabulary")
    train(run_settings(text, tmp_path / "run", teacher=tmp_path / "padded", steps=1), progress=False)
    assert weights.load(tmp_path / "run").config.vocab_size == config.vocab_size  # its own, without init


def test_a_teacher_with_too_few_positions_or_no_tokenizer(text, dense, tmp_path):
    model = weights.load(dense)
    config = dataclasses.replace(model.config, n_positions=9)
    weights.save(weights.Model(config, weights.init_params(config, 0), model.tokenizer), tmp_path / "short")
    weights.save(model._replace(tokenizer=None), tmp_path / "bare")
    refused(run_settings(text, tmp_path / "run", teacher=tmp_path / "short"),
            r"context: 16 tokens .* n_positions \(9\) of the teacher .*smaller context")
    refused(run_settings(text, tmp_path / "run", teacher=tmp_path / "bare"), "teacher: .*bare has no tokenizer")
    assert not (tmp_path / "run").exists()


def test_a_teacher_is_read_and_hashed_once(text, dense, tmp_path, monkeypatch):
    """By a fresh run, and by one that goes on; by a finished one, not at all."""
    read, hashed = [], []
    real_load, real_hash = weights.load, teacher.fingerprint
    monkeypatch.setattr(weights, "load", lambda path: read.append(path) or real_load(path))
    monkeypatch.setattr(teacher, "fingerprint", lambda model: hashed.append(model) or real_hash(model))
    for stop_at in (1, 2, 2):
        train(run_settings(text, tmp_path / "run", teacher=dense, stop_at=stop_at), progress=False)
        assert len(read) == len(hashed) == stop_at


def test_a_teacher_that_went_away_or_changed_is_named_on_resuming(text, dense, tmp_path):
    teacher, out = tmp_path / "teacher", tmp_path / "run"
    shutil.copytree(dense, teacher)
    settings = run_settings(text, out, teacher=teacher, steps=2)
    train(settings, progress=False)
    state = run_files.load_state(out)
    state.step = 1
    run_files.save_state(out, state)
    model = weights.load(teacher)
    changed = {name: p.copy() for name, p in model.params.items()}
    changed["ln_f.bias"][-1] += 1e-3
    weights.save(model._replace(params=changed), teacher)
    before = {path: path.read_bytes() for path in out.iterdir()}
    refused(settings, "teacher: .*teacher has other weights than when .*run was begun: put those back")
    assert before == {path: path.read_bytes() for path in out.iterdir()}
    weights.save(model, teacher)
    train(settings, progress=False)
    run_files.save_state(out, state)
    Tokenizer.train(["eleven elves levelled hills " * 9], 270).save(teacher)
    refused(settings, "another vocabulary")
    shutil.rmtree(teacher)
    refused(settings, "teacher")
    refused(run_settings(text, out, steps=2), "teacher is None, but .* was begun with")
