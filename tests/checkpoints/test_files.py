"""Checkpoint files: where they are found, stored types, damage, pickles, and a disk that fills up."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoint_tools import PLAIN, PRUNED, assert_refuses, assert_same, directory_of, model_of, shard, write_raw
from hypothesis import given
from hypothesis import strategies as st

from dcp_ref.checkpoints import files, weights
from dcp_ref.checkpoints.tokenizer import Tokenizer
from dcp_ref.checkpoints.weights import CheckpointError
from dcp_ref.config import Config


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_16_bits_become_32_and_the_others_stay(tmp_path, dtype):
    stored = model_of(PLAIN, dtype=dtype).params
    loaded = weights.load(directory_of(tmp_path, PLAIN, stored)).params
    wide = np.float64 if dtype == np.float64 else np.float32
    assert_same(loaded, {name: array.astype(wide) for name, array in stored.items()})


def test_every_finite_bfloat16(tmp_path):
    bits = np.arange(2**16)
    bits = bits[bits >> 7 & 255 != 255]
    exponent, fraction = bits >> 7 & 255, bits & 127
    magnitude = np.where(exponent == 0, np.ldexp(fraction, -133), np.ldexp(128.0 + fraction, exponent - 134))
    expected = np.where(bits >> 15, -magnitude, magnitude)
    config = Config(vocab_size=len(bits) // 4, n_positions=1, n_embd=4, n_layer=1, n_head=1)
    entries = {n: ("BF16", list(s), bytes(2 * int(np.prod(s)))) for n, s in weights.shapes(config).items()}
    entries = {"h.0.attn.bias": ("U8", [1], b"\0")} | entries  # what follows is not aligned
    entries["wte.weight"] = ("BF16", [len(bits) // 4, 4], bits.astype("<u2").tobytes())
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    write_raw(tmp_path / "model.safetensors", entries)
    loaded = weights.load(tmp_path).params["wte.weight"]
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded.ravel(), expected)
    assert loaded.flags.owndata


def test_a_shipped_model_has_a_name(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "SHIPPED", tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    directory_of(tmp_path / "models" / "small", PRUNED)
    assert weights.load("small").config == PRUNED
    for path in ("./small", "small/", "../small", tmp_path / "small", Path("small")):  # only the bare name is no path
        assert_refuses(path, "small", "no such directory")
    directory_of(tmp_path / "small", PLAIN)
    assert weights.load("small").config == PLAIN  # a directory comes first
    assert_refuses("smal", "smal", "no such directory", "['small']")
    assert_refuses("../nowhere/small", "no such directory")
    assert_refuses("", "the path is empty", "['small']")


def test_a_file_instead_of_a_directory(tmp_path):
    directory_of(tmp_path)
    assert_refuses(tmp_path / "model.safetensors", "model.safetensors: a file", "directory")


@given(st.data())
def test_truncated_anywhere(tmp_path_factory, data):
    directory = directory_of(tmp_path_factory.mktemp("cut"))
    file = directory / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    assert_refuses(directory, "model.safetensors", "not a whole safetensors file", "download it again")
    file.write_bytes(content + b"\0")
    assert_refuses(directory, "model.safetensors", "not a whole safetensors file")


@given(st.sampled_from(["model.safetensors", "config.json", "tokenizer.json", "model.safetensors.index.json"]),
       st.integers(0, 10**9), st.integers(0, 255))
def test_any_changed_byte_is_read_or_refused(tmp_path_factory, name, place, byte):
    directory = tmp_path_factory.mktemp("byte")
    weights.save(model_of(replace(PLAIN, vocab_size=258), tokenizer=Tokenizer.train(["ab"], 258)), directory)
    if "index" in name:
        shard(directory)
    content = bytearray((directory / name).read_bytes())
    content[place % min(len(content), 2000)] = byte  # mostly the header
    (directory / name).write_bytes(content)
    try:
        model = weights.load(directory)
    except CheckpointError as error:
        assert str(directory) in str(error)
    else:
        assert {n: a.shape for n, a in model.params.items()} == weights.shapes(model.config)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"[]", b"3", b"null"])
def test_a_config_that_is_no_json_object(tmp_path, content):
    directory_of(tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    assert_refuses(tmp_path, "config.json", "JSON", "download it again")


def test_no_config(tmp_path):
    (directory_of(tmp_path) / "config.json").unlink()
    assert_refuses(tmp_path, "config.json: missing")


def test_no_weights(tmp_path):
    (directory_of(tmp_path) / "model.safetensors").unlink()
    assert_refuses(tmp_path, "model.safetensors: missing", "download it")


def test_weights_that_are_a_directory(tmp_path):
    (directory_of(tmp_path) / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").mkdir()
    assert_refuses(tmp_path, "model.safetensors: cannot be read (Is a directory)")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "checkpoint.pth", "model.safetensors"])
def test_a_pickle_is_never_run(tmp_path, name):
    (directory_of(tmp_path) / "model.safetensors").unlink()
    (tmp_path / name).write_bytes(b"cos\nmkdir\n(S'" + str(tmp_path / "ran").encode() + b"'\ntR.")
    words = ["not a whole safetensors file"] if name == "model.safetensors" else [name, "pickle", "save_pretrained"]
    assert_refuses(tmp_path, "model.safetensors", *words)
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path):
    model = model_of(PLAIN)
    weights.save(model, tmp_path)
    script = """if True:
        import resource, sys
        from dcp_ref.checkpoints import weights
        old = weights.load(sys.argv[1])
        new = old._replace(params={name: array + 1 for name, array in old.params.items()})
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            weights.save(new, sys.argv[1])
        except OSError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "model.safetensors: cannot be written" in done.stdout
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors"]
    assert_same(weights.load(tmp_path).params, model.params)


def test_a_kill_before_the_first_replacement_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    model = model_of(PLAIN)
    weights.save(model, tmp_path)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        weights.save(model_of(PRUNED, seed=1), tmp_path)
    loaded = weights.load(tmp_path)
    assert loaded.config == PLAIN
    assert_same(loaded.params, model.params)
