"""Inputs that a person names: files, and -, which is standard input."""

import sys
from collections.abc import Sequence
from pathlib import Path

STANDARD = "-"


def name(path: str) -> str:
    """What messages call it."""
    return "standard input" if path == STANDARD else path


def shown(path: str) -> str:
    """A name for what takes Unicode alone: bytes of it that are no UTF-8 are written out."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


def read(path: str) -> bytes:
    """All its bytes. Raises ValueError naming it, with what the system said."""
    try:
        if path != STANDARD:
            return Path(path).read_bytes()
        if sys.stdin is None:
            raise ValueError("standard input is closed: give a file")
        return sys.stdin.buffer.read()
    except OSError as error:
        raise ValueError(f"{name(path)}: cannot be read ({error.strerror or error})") from error


def check(paths: Sequence[str]) -> None:
    """Raises ValueError when standard input is among them twice: the second time it would be empty."""
    if list(paths).count(STANDARD) > 1:
        raise ValueError("standard input, -, is given twice, but can be read once: leave one out")


def decoded(data: bytes) -> str:
    """UTF-8 without a byte order mark, and with lines that end in a newline alone. Raises UnicodeDecodeError."""
    return data.decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n")
