"""Weights in several files: the index that lists them, and everything that can be wrong with it."""

import json
import shutil

import numpy as np
import pytest
from checkpoint_tools import PLAIN, PRUNED, SHARDS, assert_refuses, assert_same, directory_of, model_of, shard
from safetensors.numpy import load_file, save_file

from dcp_ref.checkpoints import weights


def test_shards(tmp_path):
    shard(directory_of(tmp_path, PRUNED))
    assert_same(weights.load(tmp_path).params, model_of(PRUNED).params)


def test_shards_that_are_symbolic_links(tmp_path):  # as in the cache of huggingface_hub
    shard(directory_of(tmp_path / "m"))
    (tmp_path / "blobs").mkdir()
    for file in list((tmp_path / "m").glob("*.safetensors")):
        target = tmp_path / "blobs" / file.name[:11]
        file.rename(target)
        file.symlink_to(target)
    assert_same(weights.load(tmp_path / "m").params, model_of(PLAIN).params)


@pytest.mark.parametrize("bad", ["../model-1.safetensors", "/etc/x.safetensors", "a/b.safetensors", "x.bin", 3, None,
                                 "", "..", "a\0.safetensors"])
def test_an_index_that_leads_elsewhere(tmp_path, bad):
    index = shard(directory_of(tmp_path / "m"))
    shutil.copy(next((tmp_path / "m").glob("*.safetensors")), tmp_path / "model-1.safetensors")
    index["weight_map"]["ln_f.bias"] = bad
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_refuses(tmp_path / "m", "model.safetensors.index.json: ln_f.bias:", "plain name")


def test_an_index_whose_shard_is_missing(tmp_path):
    shard(directory_of(tmp_path))
    (tmp_path / SHARDS[1]).unlink()
    assert_refuses(tmp_path, "index.json", f"{SHARDS[1]} is missing", "download")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": []}'])
def test_a_broken_index(tmp_path, content):
    shard(directory_of(tmp_path))
    (tmp_path / "model.safetensors.index.json").write_text(content)
    assert_refuses(tmp_path, "model.safetensors.index.json", "download it again")


def test_shards_name_the_one_that_is_wrong(tmp_path):
    shard(directory_of(tmp_path))
    file = tmp_path / SHARDS[1]
    tensors = load_file(file)
    name = next(iter(tensors))
    save_file(tensors | {name: np.full_like(tensors[name], np.nan)}, file)
    assert_refuses(tmp_path, f"{SHARDS[1]}: {name} holds")
    save_file({n: a for n, a in tensors.items() if n != name}, file)
    assert_refuses(tmp_path, f"model.safetensors.index.json: {name} is missing")
    file.write_bytes(file.read_bytes()[:-1])
    assert_refuses(tmp_path, f"{SHARDS[1]}: not a whole")


def test_a_tensor_in_two_shards(tmp_path):
    shard(directory_of(tmp_path))
    first, second = (tmp_path / name for name in SHARDS)
    name, array = next(iter(load_file(first).items()))
    save_file(load_file(second) | {name: array}, second)
    assert_refuses(tmp_path, second.name, first.name, f"{name} is there twice")
