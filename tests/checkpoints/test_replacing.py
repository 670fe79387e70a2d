"""Sets of files: whatever fails, and wherever a process is killed, a reader sees the old set or the new one."""

import contextlib
import errno
import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from checkpoint_tools import PLAIN, PRUNED, SHARDS, assert_same, directory_of, model_of, shard
from fault_tools import failing_at
from thread_tools import run_python

from dcp_ref.checkpoints import files, weights
from dcp_ref.checkpoints import replacing as replacing_module
from dcp_ref.checkpoints.replacing import current, finish, replacing, steady
from dcp_ref.checkpoints.tokenizer import Tokenizer

OLD = model_of(replace(PLAIN, vocab_size=262), tokenizer=Tokenizer.train(["ab ab cd"], 262))
NEW = model_of(replace(PLAIN, vocab_size=260, n_layer=1), 1, tokenizer=Tokenizer.train(["xy"], 258))


def which(directory):
    """Which of the two models `load` sees there; anything between them fails."""
    loaded = weights.load(directory)
    found = OLD if loaded.config == OLD.config else NEW
    assert loaded.config == found.config and loaded.tokenizer.vocabulary == found.tokenizer.vocabulary
    assert_same(loaded.params, found.params)
    return "old" if found is OLD else "new"


def interrupted():
    raise KeyboardInterrupt


def refused():
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("fail", [interrupted, refused])
def test_a_failure_of_every_single_call_leaves_one_of_the_two_sets(tmp_path, fail, after):
    seen, n, reached = set(), 0, True
    while reached:
        n += 1
        directory = tmp_path / str(n)
        weights.save(OLD, directory)
        with failing_at(n, fail, after) as happened:
            with contextlib.suppress(KeyboardInterrupt, OSError):
                weights.save(NEW, directory)
            reached = happened()
        seen.add(which(directory))
        weights.save(OLD, directory)  # what was cut short does not stand in the way
        assert which(directory) == "old" and not list(directory.glob(".saved"))
    assert seen == {"old", "new"} and n > 20


def test_a_kill_at_every_single_call_leaves_one_of_the_two_sets(tmp_path):
    """The children of one process, which end without any cleaning up."""
    exits = run_python(KILLED, tmp_path, Path(__file__).parent).split()
    assert len(exits) > 20 and set(exits[:-1]) == {"9"} and exits[-1] == "0"
    seen = [which(tmp_path / str(n)) for n in range(1, len(exits) + 1)]
    assert seen[0] == "old" and seen[-1] == "new" and seen == sorted(seen, reverse=True)
    for directory in tmp_path.iterdir():
        weights.save(OLD, directory)
        assert which(directory) == "old" and not list(directory.glob(".saved"))


KILLED = """
import os, sys
from pathlib import Path
from fault_tools import failing_at
sys.path.append(sys.argv[2])
from test_replacing import NEW, OLD
from dcp_ref.checkpoints import weights

n, code = 0, 9
while code:
    n += 1
    directory = Path(sys.argv[1]) / str(n)
    weights.save(OLD, directory)
    if not os.fork():
        with failing_at(n, lambda: os._exit(9)):
            weights.save(NEW, directory)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.wait()[1])
    print(code)
"""


def test_all_is_on_the_disk_before_it_is_decided(tmp_path, monkeypatch):
    """A power cut then finds the whole set, or none of it."""
    events, flush, rename = [], replacing_module._flush, os.replace
    monkeypatch.setattr(replacing_module, "_flush", lambda path: events.append(path.name) or flush(path))
    monkeypatch.setattr(os, "replace", lambda old, new: events.append(new.name) or rename(old, new))
    weights.save(NEW, tmp_path)
    decided = events.index(".saved")
    files_there = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert events[: decided - 1] == files_there and events[decided - 1].startswith(".saving-")
    assert events[decided + 1 :] == [tmp_path.name, *files_there, tmp_path.name]


def half_moved(directory):
    """NEW over OLD, with the config in its place and all else still in .saved."""
    weights.save(OLD, directory)
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        real, calls = os.replace, []
        patch.setattr(os, "replace", lambda *paths: interrupted() if paths[0].name == "model.safetensors" else
                      calls.append(paths) or real(*paths))
        weights.save(NEW, directory)
    assert sorted(os.listdir(directory / ".saved")) == ["model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    return directory


def test_a_set_that_is_cut_short_is_read_whole_and_others_can_too(tmp_path):
    directory = half_moved(tmp_path)
    assert which(directory) == "new"
    assert os.stat(directory / ".saved").st_mode == os.stat(directory).st_mode
    finish(directory)
    assert which(directory) == "new"
    assert sorted(os.listdir(directory)) == [
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


def test_a_set_over_shards_that_is_cut_short(tmp_path):
    """The old index and its shards stay, but nothing reads them any more."""
    weights.save(OLD, tmp_path)
    shard(tmp_path)
    assert which(tmp_path) == "old"
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", lambda *paths, real=os.replace: real(*paths) and None if paths[1].name == ".saved"
                      else interrupted())
        weights.save(NEW, tmp_path)
    assert which(tmp_path) == "new" and (tmp_path / SHARDS[0]).exists()


def test_shards_in_a_set_that_is_cut_short(tmp_path):
    directory_of(tmp_path, PRUNED)
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", lambda *paths, real=os.replace: real(*paths) and None if paths[1].name == ".saved"
                      else interrupted())
        with replacing(tmp_path) as temporary:
            directory_of(temporary, PLAIN)
            shard(temporary)
            (tmp_path / "model.safetensors").unlink()
    assert weights.load(tmp_path).config == PLAIN
    assert files.read_tensors(tmp_path)[0].keys() == weights.shapes(PLAIN).keys()


def test_what_cannot_be_replaced_is_refused_before_anything_is(tmp_path):
    weights.save(OLD, tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "other")
    (tmp_path / "model.safetensors").mkdir()
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(IsADirectoryError, match=r"model\.safetensors"):
        weights.save(NEW, tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["config.json", "model.safetensors", "other", "tokenizer.json",
                                            "tokenizer_config.json"]


def test_several_may_save_and_read_at_once(tmp_path):
    """No reader ever sees two sets mixed, and no writer fails."""
    weights.save(OLD, tmp_path)
    failures, seen, done = [], [], threading.Event()

    def save(model):
        try:
            for _ in range(15):
                weights.save(model, tmp_path)
        except BaseException as error:
            failures.append(error)

    def read():
        try:
            while not done.is_set():
                seen.append(which(tmp_path))
        except BaseException as error:
            failures.append(error)

    writers = [threading.Thread(target=save, args=[model]) for model in (OLD, NEW)]
    reader = threading.Thread(target=read)
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert not failures and seen
    assert not list(tmp_path.glob(".*"))


def test_a_reader_that_is_overtaken_reads_again(tmp_path):
    weights.save(OLD, tmp_path)
    read = []

    def slow(directory):
        config = (current(directory / "config.json")).read_bytes()
        if not read:
            weights.save(NEW, directory)
        read.append(config)
        return config

    assert steady(tmp_path, slow) == (tmp_path / "config.json").read_bytes()
    assert len(read) == 2
    with pytest.raises(OSError, match="replaced 100 times"):
        steady(tmp_path, lambda directory: weights.save(OLD, directory))


def test_plain_directories_are_read_as_they_are(tmp_path):
    assert weights.load(directory_of(tmp_path)).config == PLAIN
    assert current(tmp_path / "config.json") == tmp_path / "config.json"
    assert not any(np.isnan(array).any() for array in weights.load(Path(tmp_path)).params.values())
