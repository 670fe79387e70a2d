"""Parts out: the rows of one part, computed and written whole, so that a part is there or is not.

    part-00000012-3f1c8a90b2d4e6f7.jsonl   part 12, and the hash of its rows in the input

The bytes of a part are a function of its rows and of the settings in the manifest.
"""

import io
import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dcp_ref.checkpoints.replacing import replace_file
from dcp_ref.corpus.mapper import Mapper
from dcp_ref.corpus.reading import Part, arrow_modules, documents

FORMATS = ("jsonl", "parquet")
NAME = re.compile(r"part-(\d{8,})-([0-9a-f]{16})\.(jsonl|parquet)")
GOOD = b'"error": ""}'  # how a row of JSONL ends that has no error: it is the last column


class Made(NamedTuple):
    """A part's file before it is written, and what is in it: rows, those with an error, and tokens scored or drawn."""

    name: str
    content: bytes
    rows: int
    errors: int
    tokens: int


def name_of(part: Part, form: str) -> str:
    """The name of a part's file."""
    return f"part-{part.number:08d}-{part.digest}.{form}"


def make(mapper: Mapper, part: Part, form: str) -> Made:
    """Map the rows of a part, those that are none aside, to the content of its file."""
    every = documents(part, mapper.id, mapper.text)
    good = [one for one in every if not one.error]
    results = iter(mapper.results([one.id for one in good], [one.text for one in good]))
    empty = mapper.failed("")
    rows = [{"id": one.id, **(empty | {"error": one.error} if one.error else next(results))} for one in every]
    tokens = sum(mapper.tokens_of(row) for row in rows)
    content = {"jsonl": to_jsonl, "parquet": to_parquet}[form]([{k: plain(v) for k, v in row.items()} for row in rows])
    return Made(name_of(part, form), content, len(rows), sum(row["error"] != "" for row in rows), tokens)


def plain(value: Any) -> Any:
    """A value as JSON and Parquet hold it: None for what is not finite."""
    if isinstance(value, (list, np.ndarray)):
        return [plain(one) for one in (value.tolist() if isinstance(value, np.ndarray) else value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_jsonl(rows: list[dict[str, Any]]) -> bytes:
    """Lines of JSON in UTF-8. A string that is no Unicode has escapes: JSON can write lone surrogates so."""
    return b"".join(map(_line, rows))


def _line(row: dict[str, Any]) -> bytes:
    try:
        return (json.dumps(row, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(row) + "\n").encode()


def to_parquet(rows: list[dict[str, Any]]) -> bytes:
    """A file of Parquet; ids are strings there. What is no Unicode in a string has escapes."""
    arrow, parquet = arrow_modules("--format parquet")
    types = {"log_probability": arrow.float64(), "tokens": arrow.int64(), "bytes": arrow.int64(),
             "bits_per_byte": arrow.float64(), "live_tokens": arrow.list_(arrow.float64()),
             "share_kept": arrow.float64(), "ids": arrow.list_(arrow.int64())}
    schema = arrow.schema([(name, types.get(name, arrow.string())) for name in rows[0]])
    rows = [row | {name: valid(row[name]) for name in row if name not in types and row[name] is not None}
            for row in rows]
    output = io.BytesIO()
    parquet.write_table(arrow.Table.from_pylist(rows, schema), output)
    return output.getvalue()


def valid(text: Any) -> str:
    """A string, with escapes for what is no Unicode."""
    return str(text).encode("utf-8", "backslashreplace").decode()


def write(directory: Path, made: Made) -> None:
    """Write a part's file whole. Raises OSError."""
    replace_file(directory / made.name, made.content)


def existing(directory: Path, form: str) -> dict[int, str]:
    """The names of the parts that are there, by their numbers. Raises ValueError when one is there twice."""
    found: dict[int, str] = {}
    for file in directory.iterdir():
        match = NAME.fullmatch(file.name)
        if match and match[3] == form and found.setdefault(int(match[1]), file.name) != file.name:
            raise ValueError(f"{directory}: part {int(match[1])} is there twice, from two inputs: give another --out")
    return found


def errors_in(file: Path) -> int:
    """How many rows of a part's file have an error. Raises ValueError for a file that cannot be read."""
    try:
        if file.suffix == ".jsonl":
            return sum(not line.rstrip(b"\n").endswith(GOOD) for line in file.read_bytes().splitlines())
        _, parquet = arrow_modules(str(file))
        return sum(error != "" for error in parquet.read_table(file, columns=["error"])["error"].to_pylist())
    except (OSError, KeyError) as error:
        raise ValueError(f"{file}: cannot be read ({error}): remove it, and it is made again") from None
