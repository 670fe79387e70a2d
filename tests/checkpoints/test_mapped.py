"""Parameters are views of the mapped file: read-only, checked within the memory of one tensor, and forgotten."""

import copy
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from checkpoint_tools import PLAIN, PRUNED, WIDE, assert_same, directory_of, model_of, shard, write_raw, write_zeros
from training_tools import run_settings

from dcp_ref import Engine
from dcp_ref.checkpoints import files, weights
from dcp_ref.training import train

MEASURE = """
import re, sys
from pathlib import Path
import dcp_ref
from dcp_ref.checkpoints import files

def megabytes(field):
    return int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1000

before = [megabytes("VmHWM"), megabytes("RssFile")]
params = dcp_ref.load(sys.argv[1]).params
print(megabytes("VmHWM") - before[0], megabytes("RssFile") - before[1])
for round in range(2):
    print(sum(float(array.sum()) for array in params.values()), megabytes("RssFile"))
    for array in params.values():
        files.forget(array)
    print(megabytes("RssFile"))
"""


def owner_of(array):
    while isinstance(array, np.ndarray) and not isinstance(array, np.memmap):
        array = array.base
    return array


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_wide_weights_are_read_only_views_of_the_file(tmp_path, dtype):
    expected = model_of(PRUNED, dtype=dtype).params
    loaded = weights.load(directory_of(tmp_path, PRUNED, expected)).params
    assert_same(loaded, expected)
    for array in loaded.values():
        assert type(array) is np.ndarray and array.flags.c_contiguous and array.flags.aligned
        assert isinstance(owner_of(array), np.memmap) and not array.flags.writeable


@pytest.mark.parametrize(("name", "dtype", "before"), [("F32", "f4", 1), ("F64", "f8", 4), ("F16", "f2", 8)])
def test_unaligned_and_narrow_weights_are_copies(tmp_path, name, dtype, before):
    stored = model_of(PLAIN, dtype=dtype).params
    entries = {"h.0.attn.bias": ("U8", [before], bytes(before))}
    entries |= {n: (name, list(a.shape), a.tobytes()) for n, a in stored.items()}
    write_raw(directory_of(tmp_path) / "model.safetensors", entries)
    loaded = weights.load(tmp_path).params
    wide = np.float64 if name == "F64" else np.float32
    assert_same(loaded, {n: a.astype(wide) for n, a in stored.items()})
    for array in loaded.values():
        assert array.flags.owndata and array.flags.aligned and array.flags.writeable


@pytest.mark.parametrize("sharded", [False, True])
def test_saving_where_a_model_was_loaded_from(tmp_path, sharded):
    directory_of(tmp_path, PRUNED)
    if sharded:
        shard(tmp_path)
    model = weights.load(tmp_path)
    for scale in (2, 3):  # the second time, the file that is mapped has no name any more
        weights.save(model._replace(params={n: scale * a for n, a in model.params.items()}), tmp_path)
        assert_same(weights.load(tmp_path).params, {n: scale * a for n, a in model_of(PRUNED).params.items()})
        assert_same(model.params, model_of(PRUNED).params)
    weights.save(model, tmp_path)
    assert_same(weights.load(tmp_path).params, model.params)
    assert_same(model.params, model_of(PRUNED).params)


def test_copies_can_be_changed(tmp_path):
    params = weights.load(directory_of(tmp_path, PRUNED)).params
    for copied in (copy.deepcopy(params), pickle.loads(pickle.dumps(params)), {n: a.copy() for n, a in params.items()}):
        assert_same(copied, params)
        for array in copied.values():
            array[...] = 1
    assert_same(params, model_of(PRUNED).params)


def test_a_model_decodes_and_trains_from_the_file(text, tmp_path):
    train(run_settings(text, tmp_path / "a", steps=1), progress=False)
    model = weights.load(tmp_path / "a")
    before = copy.deepcopy(model.params)
    engine = Engine(model, "numpy")
    engine.feed([engine.new_sequence()], [[1, 2, 3]])
    train(run_settings(text, tmp_path / "b", init=str(tmp_path / "a"), config=None, steps=2), progress=False)
    assert_same(model.params, before)
    assert not np.array_equal(weights.load(tmp_path / "b").params["wte.weight"], before["wte.weight"])


def test_only_read_only_files_are_forgotten(tmp_path):
    """A private mapping would lose what was written to it; everything else has no file to be read from again."""
    np.arange(3000.0).tofile(tmp_path / "file")
    private = np.memmap(tmp_path / "file", np.float64, "c")
    private += 1
    for array in (private, private[7:], np.arange(1.0, 3001), np.empty((0, 3)), np.float64(3)):
        files.forget(array)
    np.testing.assert_array_equal(private, np.arange(1.0, 3001))
    shared = np.memmap(tmp_path / "file", np.float64, "r")
    for array in (shared, shared[::-2], shared[:3000].reshape(60, 50).T, shared[3000:], shared[2999:], shared[600:601]):
        before = array.copy()
        files.forget(array)
        np.testing.assert_array_equal(array, before)


def measured(directory, name, itemsize, tied_copy):
    write_zeros(directory, WIDE, name, itemsize, tied_copy)
    command = [sys.executable, "-c", MEASURE, str(directory)]
    return [float(x) for x in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()]


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc/self/status")
def test_loading_takes_the_memory_of_one_tensor_and_forgetting_gives_it_back(tmp_path):
    peak, left, *rounds = measured(tmp_path, "F32", 4, False)
    assert peak < 30 and left < 10
    for total, touched, forgotten in (rounds[:3], rounds[3:]):
        assert total == 0 and touched - forgotten > 210


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc/self/status")
def test_what_is_not_kept_is_forgotten(tmp_path):
    """A tied copy of the head, and 16-bit weights after they were widened to the 219 MB that stay."""
    peak, left, *_ = measured(tmp_path, "F32", 4, True)
    assert peak < 60 and left < 10
    assert measured(tmp_path, "F16", 2, False)[0] < 250
