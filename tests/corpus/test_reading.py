"""Rows in: the same parts from every kind of file, and errors that name the file or the row."""

import gzip
import io
import json
import lzma

import pytest
from cli_tools import stdin_of
from corpus_tools import BAD, corpus, write

from dcp_ref.corpus import reading
from dcp_ref.corpus.reading import documents, read_parts

LINES = corpus(120)


def parts(*paths, rows=50, limit=None):
    return list(read_parts([str(path) for path in paths], "id", "text", rows, limit))


@pytest.fixture
def plain(tmp_path):
    return write(tmp_path / "plain.jsonl", LINES)


def packed(directory, kind, data):
    file = directory / f"rows.jsonl.{kind}"
    if kind == "zst":
        zstandard = pytest.importorskip("zstandard", reason="needs the package zstandard")
        half = len(data) // 2  # two frames, as `zstd -T` and `cat` make them
        pack = [zstandard.ZstdCompressor().compress(piece) for piece in (data[:half], data[half:])]
        file.write_bytes(b"".join(pack))
    else:
        file.write_bytes({"gz": gzip, "xz": lzma}[kind].compress(data))
    return file


@pytest.mark.parametrize("kind", ["gz", "xz", "zst"])
def test_packed_files_have_the_same_parts(tmp_path, plain, kind):
    file = packed(tmp_path, kind, b"\n".join(LINES))
    assert parts(file) == parts(plain)
    whole = file.read_bytes()
    for damaged in (whole[:-9], whole[: len(whole) // 2], b"x" + whole[1:]):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"rows\.jsonl\.{kind}: cannot be read \(\w"):
            parts(file)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    for name, package in (("x.zst", "zstandard"), ("x.parquet", "pyarrow")):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ValueError, match=f"pip install {package}"):
            parts(tmp_path / name)


def test_standard_input_is_an_input(plain, monkeypatch):
    stdin_of(monkeypatch, b"\n".join(LINES))
    assert parts("-") == parts(plain)
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(ValueError, match="standard input is closed"):
        parts("-")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.jsonl: cannot be read \(No such file"):
        parts(tmp_path / "nowhere.jsonl")


def test_parts_are_cuts_of_all_rows(tmp_path, plain, monkeypatch):
    found = parts(plain)
    assert [(part.number, part.first, len(part.lines)) for part in found] == [(0, 1, 50), (1, 51, 50), (2, 101, 20)]
    assert [line for part in found for line in part.lines] == LINES
    assert parts(plain, rows=1000)[0].lines == LINES and parts(plain, limit=60)[-1].lines == LINES[50:60]
    halves = [write(tmp_path / name, lines) for name, lines in (("a", LINES[:33]), ("b", LINES[33:]))]
    assert parts(*halves) == found
    monkeypatch.setattr(reading, "PART_BYTES", 3000)
    smaller = parts(plain)
    assert [line for part in smaller for line in part.lines] == LINES and len(smaller) > 5
    assert all(sum(map(len, part.lines[:-1])) < 3000 for part in smaller)


def test_a_digest_belongs_to_the_rows(plain):
    assert len({part.digest for part in parts(plain, rows=7)}) == len(parts(plain, rows=7))
    assert reading._part(0, 1, [b"ab", b"c"]).digest != reading._part(0, 1, [b"a", b"bc"]).digest


def test_empty_lines_line_ends_and_a_byte_order_mark_are_no_rows(tmp_path, plain):
    (tmp_path / "other").write_bytes(b"\xef\xbb\xbf" + b"\r\n \r\n".join(LINES) + b"\n\n")
    assert parts(tmp_path / "other") == parts(plain)
    (tmp_path / "empty").write_bytes(b"\n")
    assert parts(tmp_path / "empty") == []


@pytest.mark.parametrize("length", [90, 99, 100, 101, 102, 103, 250, 1000])
@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_row_that_is_too_long_is_not_kept(tmp_path, monkeypatch, length, end):
    monkeypatch.setattr(reading, "LONGEST_ROW", 100)
    monkeypatch.setattr(reading, "CHUNK", 64)
    row, between = b'{"id": 1, "text": "' + b"x" * (length - 21) + b'"}', b'{"id": 2, "text": "y"}'
    (tmp_path / "rows").write_bytes(row + b"\n" + between + b"\n" + row + end)
    [part] = parts(tmp_path / "rows")
    first, _, last = documents(part, "id", "text")
    assert len(row) == length and len(part.lines) == 3 and part.lines[1] == between
    assert (first.error, last.error) == (("", "") if length <= 100 else (
        "row 1 is longer than 100 bytes", "row 3 is longer than 100 bytes"))
    assert max(map(len, part.lines)) <= 110


def test_what_is_no_row_has_an_error_that_tells_its_number(tmp_path):
    [part] = parts(write(tmp_path / "bad", BAD))
    errors = [one.error for one in documents(part, "id", "text")]
    assert errors == [
        "row 1 is not a JSON object", "row 2 is not a JSON object", "row 3: text must be a string",
        "row 4: id must be a string or an integer of 64 bits", "row 5: id must be a string or an integer of 64 bits",
        "row 6: text must be a string", "", "", "row 9 is not a JSON object", "",
        "row 11: id must be a string or an integer of 64 bits"]
    assert documents(part, "id", "text")[6].text == "caf\udce9 \udcff"  # for the tokenizer to refuse


def test_parquet_has_the_same_documents(tmp_path):
    arrow, parquet = (pytest.importorskip(name, reason="needs pyarrow") for name in ("pyarrow", "pyarrow.parquet"))
    ids, texts = ["a", "b", "c", "d"], ["the sea", "", "海", None]
    parquet.write_table(arrow.table({"id": ids, "text": texts, "more": [1, 2, 3, 4]}), tmp_path / "x.parquet")
    [part] = parts(tmp_path / "x.parquet")
    same = [json.dumps({"id": id, "text": text}).encode() for id, text in zip(ids, texts, strict=True)]
    assert documents(part, "id", "text") == documents(parts(write(tmp_path / "x.jsonl", same))[0], "id", "text")
    raw = arrow.Array.from_buffers(arrow.string(), 1, [None, arrow.array([0, 2], arrow.int32()).buffers()[1],
                                                       arrow.py_buffer(b"\xff\xe9")])
    parquet.write_table(arrow.table({"id": [7], "text": raw}), tmp_path / "y.parquet")
    assert documents(parts(tmp_path / "y.parquet")[0], "id", "text") == [(7, "\udcff\udce9", "")]
    for name, data, words in (("z", b"nothing", "cannot be read"), ("x", None, "has no column 'body'")):
        if data:
            (tmp_path / f"{name}.parquet").write_bytes(data)
        with pytest.raises(ValueError, match=rf"{name}\.parquet: {words}"):
            list(read_parts([str(tmp_path / f"{name}.parquet")], "id", "body", 9))


def test_rows_are_streamed(monkeypatch):
    """No more than a part is read ahead."""
    class Endless(io.RawIOBase):
        read_bytes = 0

        def readable(self):
            return True

        def readinto(self, buffer):
            line = b'{"id": 1, "text": "x"}\n'
            buffer[: len(line)] = line
            Endless.read_bytes += len(line)
            return len(line)

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(Endless())))
    every = read_parts(["-"], "id", "text", 10)
    for n in range(5):
        assert next(every).number == n and Endless.read_bytes < 40_000
