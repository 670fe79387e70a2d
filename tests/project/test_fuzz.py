"""The targets of `make fuzz`, with a few hundred inputs each and no guidance; and what the fuzzer found once."""

import json
import types

import numpy as np
import pytest
import targets
from changes import changed
from checkpoint_tools import write_raw
from task_tools import written
from tokenizers_of_all_kinds import KINDS

from dcp_ref import tracing
from dcp_ref.analysis.tasks import read_questions
from dcp_ref.checkpoints import tokenizer_files
from dcp_ref.checkpoints.tokenizer import Tokenizer
from dcp_ref.tracing.as_json import FORMAT, VERSION

ROUNDS = 150


@pytest.mark.parametrize("name", targets.TARGETS)
def test_changed_files_are_read_or_refused_by_name(name, tmp_path):
    run, valid = targets.TARGETS[name].run, targets.TARGETS[name].seeds()
    draw = np.random.default_rng(0)
    for n in range(ROUNDS):
        data = valid[n % len(valid)]
        for _ in range(n % 3):
            at = int(draw.integers(len(data) + 1))
            data = (changed(data, int(draw.integers(2**31))) if n % 2 else None) or data[:at] + b"\xff" + data[at + 1 :]
        assert targets.finding(run, data, tmp_path) == "", data


@pytest.mark.parametrize("name", targets.TARGETS)
def test_some_seeds_are_read(name, tmp_path):
    run, valid = targets.TARGETS[name].run, targets.TARGETS[name].seeds()
    read = 0
    for data in valid:
        for file in tmp_path.iterdir():
            file.unlink()
        try:
            run(data, tmp_path)
            read += 1
        except ValueError:
            pass
    assert read >= len(valid) // 3


def test_what_is_a_finding(tmp_path):
    def raises(error):
        def run(data, directory):
            raise error
        return run

    assert targets.finding(raises(ValueError(f"{tmp_path}/x: damaged")), b"", tmp_path) == ""
    assert "not named" in targets.finding(raises(ValueError("damaged")), b"", tmp_path)
    with pytest.raises(KeyError):
        targets.finding(raises(KeyError("x")), b"", tmp_path)


def test_changes_go_into_headers_and_texts_of_json():
    assert changed(b"no JSON", 1) is None
    header = json.dumps({"__metadata__": {"trace": json.dumps({"T": 1})}, "x": {"shape": [1]}}).encode()
    for n in range(50):
        new = changed(b"\x01" + len(header).to_bytes(8, "little") + header + b"data", n)
        length = int.from_bytes(new[1:9], "little")
        assert new[9 + length :] == b"data"
        json.loads(new[9 : 9 + length])


# ---- what was found ----

def tokenizer_with(directory, kind, **model):
    fields = json.loads(KINDS[kind]().to_str())
    fields["model"] |= model
    (directory / "tokenizer.json").write_text(json.dumps(fields))
    return Tokenizer.from_directory(directory)


def test_a_library_that_panics(tmp_path):
    """Its error is no Exception."""
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a readable tokenizer"):
        tokenizer_with(tmp_path, "byte_level", continuing_subword_prefix="x" * 99)


def test_memory_that_is_refused_is_no_damage(tmp_path, monkeypatch):
    def refused(text):
        raise MemoryError

    monkeypatch.setattr(tokenizer_files.tokenizers, "Tokenizer", types.SimpleNamespace(from_str=refused))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(MemoryError):
        tokenizer_files.read(tmp_path)


def test_a_text_that_a_tokenizer_cannot_encode(tmp_path):
    tokenizer = tokenizer_with(tmp_path, "word_piece", unk_token="none")
    with pytest.raises(ValueError, match=r"cannot encode this text .*: download them again"):
        tokenizer.encode("a 海")


def test_a_token_with_two_ids(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer.json: not a readable tokenizer \(a token has two ids\)"):
        tokenizer_with(tmp_path, "unigram", vocab=[["a", 0.0], ["b", -1.0], ["a", -2.0]], unk_id=0)


@pytest.mark.parametrize("wrong", [[[]], {}, 1.5, None, "1" * 5000, -1, True])
def test_an_added_token_whose_id_is_none(wrong, tmp_path):
    targets.older_files(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"more": wrong}))
    with pytest.raises(ValueError, match=r"added_tokens.json: token .* which no token can have"):
        Tokenizer.from_directory(tmp_path)


def test_items_that_are_nested_too_deeply(tmp_path):
    with pytest.raises(ValueError, match=r"items.jsonl, line 2: no item of piqa: maximum recursion depth"):
        read_questions("piqa", written(tmp_path, "", "[" * 100_000))


def test_a_trace_with_an_impossible_shape(tmp_path):
    write_raw(tmp_path / "trace", {"ids": ("I64", [2**63, 0], b"")})
    raw = (tmp_path / "trace").read_bytes()
    header = json.loads(raw[8:]) | {"__metadata__": {"format": FORMAT, "version": str(VERSION), "trace": "{}"}}
    text = json.dumps(header).encode()
    (tmp_path / "trace").write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(ValueError, match="trace: damaged"):
        tracing.load(tmp_path / "trace")
