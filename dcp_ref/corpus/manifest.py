"""manifest.json: what the parts of a directory were made with. Parts of other settings are refused, by name."""

import json
from pathlib import Path
from typing import Any

from dcp_ref.checkpoints.replacing import replace_file

NAME = "manifest.json"


def claim(directory: Path, facts: dict[str, Any]) -> None:
    """Make the directory, and its manifest where there is none. Several processes may do so at the same time.

    Raises ValueError, naming the field, where the directory's parts were made with other facts; OSError.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / NAME
    if not file.exists():
        replace_file(file, _text(facts), keep=True)
    stored = read(directory)
    for name, value in facts.items():
        if stored.get(name) != value:
            raise ValueError(f"{file}: {name} was {stored.get(name)!r} and now is {value!r}: give the same again to "
                             "resume, or another --out")


def read(directory: Path) -> dict[str, Any]:
    """The fields of the manifest. Raises ValueError for one that cannot be read."""
    file = directory / NAME
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: cannot be read ({error}): give another --out") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{file}: must hold a JSON object: give another --out")
    return fields


def complete(directory: Path, parts: int, rows: int) -> None:
    """Write into the manifest that all parts are there, and how many rows they have. Raises ValueError and OSError."""
    fields = read(directory)
    if fields.get("complete") != (done := {"parts": parts, "rows": rows}):
        replace_file(directory / NAME, _text(fields | {"complete": done}))


def _text(fields: dict[str, Any]) -> bytes:
    return (json.dumps(fields, indent=2) + "\n").encode()
