"""Models of the Hugging Face hub: those in its local cache are found by name and revision; nothing is fetched."""

import fnmatch
import shutil
import sys

import pytest
from models import SMALL, random_model

from dcp_ref import CheckpointError, load, save
from dcp_ref.checkpoints import files, hub
from dcp_ref.cli.download import FILES

COMMIT, OLDER = "a" * 40, "b" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with two revisions of owner/small, as huggingface_hub lays it out; and no network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--owner--small"
    for seed, commit in enumerate((COMMIT, OLDER)):
        save(random_model(SMALL, seed=seed, beta=0.0), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "refs" / "v1").write_text(OLDER)
    return repository


def test_a_model_in_the_cache(cache, tmp_path):
    assert files.find_model("owner/small") == cache / "snapshots" / COMMIT
    for name in ("owner/small@v1", f"owner/small@{OLDER}"):
        assert files.find_model(name) == cache / "snapshots" / OLDER
    assert load("owner/small").config == SMALL


def test_a_directory_and_a_shipped_model_come_first(cache, tmp_path, monkeypatch):
    shutil.copytree(cache / "snapshots" / OLDER, tmp_path / "here" / "owner" / "small")
    monkeypatch.chdir(tmp_path / "here")
    assert str(files.find_model("owner/small")) == "owner/small"
    monkeypatch.setattr(hub, "in_cache", lambda name: pytest.fail("it was looked for"))
    assert load("tiny").config.n_layer == 4


@pytest.mark.parametrize("name", ["gpt2", "owner/other", "owner/small@v2", "owner/small@../..", "a/b/c", "gpt2@", "-"])
def test_a_model_that_is_nowhere(cache, name):
    with pytest.raises(CheckpointError) as refused:
        load(name)
    message = str(refused.value)
    assert message.startswith(f"{name}: no such directory, nor the bare name of a shipped model (there are ['tiny'])")
    assert ("dcp-ref download " + name in message) == (hub.NAME.fullmatch(name) is not None)


def test_half_a_model_names_the_file(cache):
    (cache / "snapshots" / COMMIT / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: missing"):
        load("owner/small")
    (cache / "snapshots" / COMMIT / "config.json").unlink()
    with pytest.raises(CheckpointError, match="dcp-ref download owner/small"):
        load("owner/small")


def test_without_the_package(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match="pip install huggingface_hub, then dcp-ref download owner/small"):
        load("owner/small")


def test_what_is_downloaded_is_all_that_loading_reads(tmp_path):
    """Of a model with a generation_config.json, and a tokenizer in older files."""
    model = load("tiny")
    save(model, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text('{"eos_token_id": 0}')
    opened = set()

    def watch(event, arguments):
        if event == "open" and isinstance(arguments[0], str) and arguments[0].startswith(str(tmp_path / "model")):
            opened.add(arguments[0].rsplit("/", 1)[-1])

    WATCHES.append(watch)
    try:
        load(tmp_path / "model")
    finally:
        WATCHES.remove(watch)
    assert {"config.json", "generation_config.json", "tokenizer.json"} <= opened
    assert [name for name in opened if not any(fnmatch.fnmatch(name, pattern) for pattern in FILES)] == []


WATCHES = []  # an audit hook cannot be removed
sys.addaudithook(lambda event, arguments: [watch(event, arguments) for watch in WATCHES])
