"""What reads files that somebody else wrote: one function for each kind, from bytes. fuzz.py draws the bytes.

A ValueError or an OSError that names the file is right. Anything else is a finding: another error, an error without
the file's name, a crash, a hang, too much memory.

A new target: a function (data, directory), which writes the bytes to files there and reads them, under `@target` with
some valid inputs. Several files are one input by `parts`: its first byte says which of the valid files is replaced.
"""

import gzip
import json
import lzma
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

from safetensors.numpy import load, save
from task_tools import ITEMS
from tokenizers_of_all_kinds import KINDS

import dcp_ref
from dcp_ref.analysis.tasks import read_questions
from dcp_ref.checkpoints import weights
from dcp_ref.checkpoints.tokenizer import Tokenizer
from dcp_ref.corpus import manifest
from dcp_ref.corpus.reading import documents, read_parts
from dcp_ref.runtime import saving
from dcp_ref.training.data import read_documents

CONFIG = dcp_ref.Config(vocab_size=11, n_positions=6, n_embd=4, n_layer=2, n_head=2, int_n_embd=2, eos_token_id=None)
MODEL = dcp_ref.Model(CONFIG, weights.init_params(CONFIG, 0), None)
NESTED = b"[" * 2000  # deeper than Python's parser goes


class Target(NamedTuple):
    run: Callable[[bytes, Path], object]
    seeds: Callable[[], list[bytes]]


TARGETS: dict[str, Target] = {}


def target(seeds: Callable[[], list[bytes]]) -> Callable[[Callable[[bytes, Path], object]], None]:
    return lambda run: TARGETS.update({run.__name__: Target(run, seeds)})


def finding(run: Callable[[bytes, Path], object], data: bytes, directory: Path) -> str:
    """What is wrong with how `run` takes these bytes, "" if nothing is. Errors of the wrong kind come out."""
    for file in directory.iterdir():
        file.unlink()
    try:
        run(data, directory)
    except (ValueError, OSError) as error:
        return "" if str(directory) in str(error) else f"the file is not named: {error!r}"
    return ""


def in_memory() -> "tempfile.TemporaryDirectory[str]":
    """A directory that is no disk's, where there is one."""
    return tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)


def parts(valid: dict[str, bytes]) -> list[bytes]:
    """The seeds of an input of several files."""
    return [bytes([n]) + data for n, whole in enumerate(valid.values()) for data in (whole, NESTED)]


def write_parts(data: bytes, valid: dict[str, bytes], directory: Path) -> None:
    replaced = list(valid)[data[0] % len(valid)] if data else ""
    for name, whole in valid.items():
        (directory / name).write_bytes(data[1:] if name == replaced else whole)


def written(write: Callable[[Path], object]) -> dict[str, bytes]:
    """The files that `write` puts into a directory."""
    with in_memory() as scratch:
        write(Path(scratch))
        return {file.name: file.read_bytes() for file in sorted(Path(scratch).iterdir())}


def older_files(directory: Path) -> None:
    """A tokenizer in the files that came before tokenizer.json."""
    fields = json.loads(KINDS["byte_level"]().to_str())["model"]
    merges = "\n".join(merge if isinstance(merge, str) else " ".join(merge) for merge in fields["merges"])
    (directory / "vocab.json").write_text(json.dumps(fields["vocab"]), encoding="utf-8")
    (directory / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    (directory / "added_tokens.json").write_text(json.dumps({"more": len(fields["vocab"])}))
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        (directory / name).write_text(json.dumps({"eos_token": "<|endoftext|>", "unk_token": {"content": "more"}}))


CHECKPOINT = written(lambda directory: weights.save(MODEL, directory)) | {
    "generation_config.json": b'{"eos_token_id": [1, 2]}',
    "tokenizer_config.json": b'{"eos_token": "</s>", "add_bos_token": false}'}
OLDER = written(older_files)
ENGINE = dcp_ref.Engine(MODEL, "numpy")
TRACE = dcp_ref.trace(MODEL, [1, 2, 3, 4, 5], backend="numpy", scores=True)


@target(lambda: parts(CHECKPOINT))
def checkpoints(data: bytes, directory: Path) -> None:
    write_parts(data, CHECKPOINT, directory)
    dcp_ref.load(directory)


@target(lambda: [kind().to_str().encode() for kind in KINDS.values()] + [NESTED])
def tokenizers(data: bytes, directory: Path) -> None:
    (directory / "tokenizer.json").write_bytes(data)
    _use(Tokenizer.from_directory(directory))


@target(lambda: parts(OLDER))
def older_tokenizers(data: bytes, directory: Path) -> None:
    write_parts(data, OLDER, directory)
    _use(Tokenizer.from_directory(directory))


def _use(tokenizer: Tokenizer | None) -> None:
    assert tokenizer is not None
    try:
        ids = tokenizer.encode("The sea\n was  grey, café \U0001f30a")
    except ValueError:  # about a text, which no file is to blame for
        return
    tokenizer.decode(ids)


@target(lambda: list(written(lambda directory: TRACE.save(directory / "trace")).values()))
def traces(data: bytes, directory: Path) -> None:
    (directory / "trace").write_bytes(data)
    trace = dcp_ref.tracing.load(directory / "trace")
    str(trace)
    trace.to_html()


def _save(directory: Path) -> None:
    for name, tokens in (("none", []), ("some", [1, 2, 3, 4])):
        sequence = ENGINE.new_sequence()
        if tokens:
            ENGINE.feed([sequence], [tokens], pinned=[[False, True, False, False]])
        ENGINE.save(sequence, directory / name)


SAVED = list(written(_save).values())


@target(lambda: SAVED)
def saved(data: bytes, directory: Path) -> None:
    """As it is; and, where it can be read at all, with the digest of what it holds now."""
    file = directory / "saved"
    file.write_bytes(data)
    try:
        sequence = ENGINE.restore(file)
    except ValueError as error:
        if str(file) not in str(error) or not _sealed(file, data):
            raise
        sequence = ENGINE.restore(file)
    if ENGINE.length(sequence) < CONFIG.n_positions:
        ENGINE.feed([sequence], [[1]])
    ENGINE.release(sequence)


def _sealed(file: Path, data: bytes) -> bool:
    """Whether the file can be given the digest of its tensors and header."""
    try:
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        tensors = load(data)
        metadata["sha256"] = saving._digest(metadata["cache"], tensors)
        file.write_bytes(save(tensors, metadata=metadata))
        return True
    except Exception:  # so nobody could have read it
        return False


@target(lambda: [b"0One.<|endoftext|>\nTwo.\r\n", "0\ufeffThree".encode(), b"1" + lzma.compress(b"text"), b"1"])
def texts(data: bytes, directory: Path) -> None:
    """The first byte says whether the file is packed."""
    file = directory / ("text.xz" if data[:1] == b"1" else "text")
    file.write_bytes(data[1:])
    read_documents([str(file)])


def _items() -> Iterator[bytes]:
    for n, item in enumerate(ITEMS.values()):
        yield bytes([n]) + json.dumps(item).encode()
        yield bytes([n]) + b"\n\n" + NESTED


@target(lambda: list(_items()))
def tasks(data: bytes, directory: Path) -> None:
    """The first byte says which task."""
    (directory / "items.jsonl").write_bytes(data[1:])
    read_questions(list(ITEMS)[data[0] % len(ITEMS) if data else 0], str(directory / "items.jsonl"))


ROWS = b'{"id": 1, "text": "The sea"}\n\n{"id": "two", "text": "caf\xe9"}\r\n[]\n'


@target(lambda: [b"0" + ROWS, b"0" + ROWS.splitlines()[0], b"1" + gzip.compress(ROWS), b"2" + lzma.compress(ROWS),
                 b"0" + NESTED, b'3{"task": "Scorer"}', b"3", b"3" + NESTED])
def corpora(data: bytes, directory: Path) -> None:
    """The first byte says how the rows are packed, or that it is the manifest."""
    name = {b"1": "rows.gz", b"2": "rows.xz", b"3": manifest.NAME}.get(data[:1], "rows")
    (directory / name).write_bytes(data[1:])
    if name == manifest.NAME:
        manifest.claim(directory, {"task": "Scorer"})
        return
    for part in read_parts([str(directory / name)], "id", "text", 2):
        assert all(one.error or isinstance(one.text, str) for one in documents(part, "id", "text"))
