"""What the system says of a file is told as it said it, and not as damage."""

import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest
from checkpoint_tools import directory_of
from text_models import text_model

from dcp_ref.checkpoints import weights
from dcp_ref.checkpoints.weights import CheckpointError

FILES = ["config.json", "model.safetensors", "tokenizer.json"]
WAYS = [(lambda path: path.mkdir(), "Is a directory"), (lambda path: path.symlink_to(path), "Too many levels")]


def assert_told(directory, words):
    with pytest.raises(CheckpointError) as caught:
        weights.load(directory)
    assert words in str(caught.value) and "download" not in str(caught.value)


@pytest.mark.parametrize(("name", "make", "words"), [
    *((name, *way) for name in FILES[:2] for way in WAYS), ("tokenizer.json", *WAYS[0])])  # a link to itself is none
def test_what_the_system_says_of_a_file_is_no_damage(tmp_path, name, make, words):
    weights.save(text_model(), tmp_path)
    (tmp_path / name).unlink()
    make(tmp_path / name)
    assert_told(tmp_path, f"{tmp_path / name}: cannot be read ({words}")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.EMFILE])
def test_a_file_that_the_system_does_not_open(tmp_path, monkeypatch, name, code):
    """As for another user's file: we may be root, who reads everything."""
    weights.save(text_model(), tmp_path)

    def opened(file, *rest, plain=io.open, **settings):
        if Path(file).name == name:
            raise OSError(code, os.strerror(code), str(file))
        return plain(file, *rest, **settings)

    monkeypatch.setattr(io, "open", opened)
    monkeypatch.setattr("builtins.open", opened)
    assert_told(tmp_path, f"{tmp_path / name}: cannot be read ({os.strerror(code)})")


def test_a_disk_that_cannot_map(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    directory_of(tmp_path)
    monkeypatch.setattr(np, "memmap", refuse)
    assert_told(tmp_path, "model.safetensors: cannot be read (No such device): this disk cannot map")


@pytest.mark.parametrize(("name", "words"), [("x" * 300, "File name too long"), ("a\0b", "embedded null byte"),
                                             ("loop", "Too many levels")])
def test_a_path_that_the_system_refuses(tmp_path, name, words):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(CheckpointError, match=rf"cannot be read \(.*{words}"):
        weights.load(tmp_path / name)


def test_names_as_they_are(tmp_path):
    """Spaces, newlines, and bytes that are no UTF-8."""
    directory = tmp_path / os.fsdecode(b"two  spaces\n\xe9")
    weights.save(text_model(), directory)
    assert weights.load(directory).tokenizer is not None
    (directory / "config.json").unlink()
    with pytest.raises(CheckpointError) as caught:
        weights.load(directory)
    assert str(caught.value).startswith(f"{directory}/config.json: missing")
