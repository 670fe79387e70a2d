"""Rows in: from JSONL, packed or not, or Parquet, to parts. A part is a cut of the input, the same in every run."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from dcp_ref.checkpoints import inputs
from dcp_ref.corpus.unpacking import DAMAGED, opened

PART_BYTES = 4 << 20  # a part ends with the row that takes it to this size
LONGEST_ROW = 64 << 20  # bytes; a longer row is not read, and has an error
CHUNK = 1 << 20  # bytes read at once of a row that is too long
BOM = b"\xef\xbb\xbf"


class Part(NamedTuple):
    """Some rows of the input, which follow each other, as lines of JSON.

    `number` counts parts from 0, `first` is the number of the first row, from 1 on; `digest` is a hash of the lines.
    """

    number: int
    first: int
    lines: list[bytes]
    digest: str


class Document(NamedTuple):
    """One row: an id (a text, an integer, or None where it has none) and a text; or what is wrong with the row."""

    id: str | int | None
    text: str
    error: str = ""


def read_parts(paths: Sequence[str], id: str, text: str, rows: int, limit: int | None = None) -> Iterator[Part]:
    """The parts of these files, one file after the other: `rows` rows each, or fewer that hold PART_BYTES.

    `id` and `text` name the columns, which Parquet is asked for. `limit` is the most rows that are read.
    Raises ValueError naming a file that cannot be read.
    """
    lines: list[bytes] = []
    number = size = first = 0
    every = (line for path in paths for line in _lines(path, id, text))
    for n, line in enumerate(islice(every, limit), 1):
        first = first or n
        lines.append(line)
        size += len(line)
        if len(lines) == rows or size >= PART_BYTES:
            yield _part(number, first, lines)
            number, first, lines, size = number + 1, 0, [], 0
    if lines:
        yield _part(number, first, lines)


def documents(part: Part, id: str, text: str) -> list[Document]:
    """The rows of a part. A line that is no row becomes one with an error, which tells its number."""
    return [_document(line, n, id, text) for n, line in enumerate(part.lines, part.first)]


def _part(number: int, first: int, lines: list[bytes]) -> Part:
    digest = hashlib.sha256(b"".join(b"%d %b" % (len(line), line) for line in lines))
    return Part(number, first, lines, digest.hexdigest()[:16])


def _document(line: bytes, n: int, id: str, text: str) -> Document:
    if len(line) > LONGEST_ROW:
        return Document(None, "", f"row {n} is longer than {LONGEST_ROW} bytes")
    try:
        fields = json.loads(line.decode("utf-8", "surrogateescape"))  # bytes that are no UTF-8 are the text's error
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        return Document(None, "", f"row {n} is not a JSON object")
    name = fields.get(id)
    if isinstance(name, bool) or not isinstance(name, (str, int)) or (isinstance(name, int) and abs(name) >= 2**63):
        return Document(None, "", f"row {n}: {id} must be a string or an integer of 64 bits")
    if not isinstance(fields.get(text), str):
        return Document(name, "", f"row {n}: {text} must be a string")
    return Document(name, fields[text])


def _lines(path: str, id: str, text: str) -> Iterator[bytes]:
    """The rows of one file as lines of JSON without their ends; empty lines are no rows."""
    try:
        if path.endswith(".parquet"):
            yield from _parquet(path, id, text)
            return
        with opened(path) as file:
            first = True
            while line := file.readline(LONGEST_ROW + 2):
                longer = len(line) > LONGEST_ROW and not line.endswith(b"\n")
                while longer and (rest := file.readline(CHUNK)):
                    longer = not rest.endswith(b"\n")
                line = (line.removeprefix(BOM) if first else line).strip(b" \t\r\n")
                first = False
                if line:
                    yield line
    except DAMAGED as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{inputs.name(path)}: cannot be read ({reason})") from error


def _parquet(path: str, id: str, text: str) -> Iterator[bytes]:
    """Rows as lines of JSON; strings that are no UTF-8 keep their bytes, as lines of JSON do."""
    arrow, parquet = arrow_modules(path)
    try:
        with parquet.ParquetFile(path) as file:
            for name in (id, text):
                if name not in file.schema_arrow.names:
                    raise ValueError(f"{path}: has no column {name!r}, but {file.schema_arrow.names}")
            for batch in file.iter_batches(1000, columns=[id, text]):
                columns = [_values(arrow, batch.column(name)) for name in (id, text)]
                for values in zip(*columns, strict=True):
                    yield json.dumps(dict(zip((id, text), values, strict=True)), default=str).encode()
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error


def _values(arrow: Any, column: Any) -> list[Any]:
    if arrow.types.is_string(column.type) or arrow.types.is_large_string(column.type):
        found = column.cast(arrow.large_binary()).to_pylist()
        return [None if one is None else one.decode("utf-8", "surrogateescape") for one in found]
    return column.to_pylist()


def arrow_modules(path: str) -> tuple[Any, Any]:
    """pyarrow, and its module for Parquet. Raises ValueError, naming the file that needs them, where it is missing."""
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise ValueError(f"{path}: Parquet needs the package pyarrow: pip install pyarrow") from None
    return pyarrow, parquet
