"""Files that a person names, where - means standard input."""

import sys
from collections.abc import Sequence
from pathlib import Path

STANDARD = "-"


def name(path: str) -> str:
    """The name of an input in messages."""
    return "standard input" if path == STANDARD else path


def shown(path: str) -> str:
    """A file name as valid Unicode, for example for a picture: bytes that are no UTF-8 become escapes."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


def read(path: str) -> bytes:
    """All bytes of an input. Raises ValueError with its name and the system's message."""
    try:
        if path != STANDARD:
            return Path(path).read_bytes()
        if sys.stdin is None:
            raise ValueError("standard input is closed: give a file")
        return sys.stdin.buffer.read()
    except OSError as error:
        raise ValueError(f"{name(path)}: cannot be read ({error.strerror or error})") from error


def check(paths: Sequence[str]) -> None:
    """Raises ValueError when standard input is given twice: the second time it would be empty."""
    if list(paths).count(STANDARD) > 1:
        raise ValueError("standard input, -, is given twice, but can be read once: leave one out")


def decoded(data: bytes) -> str:
    """The text of UTF-8 bytes, without a byte order mark and with \\n ending each line. Raises UnicodeDecodeError."""
    return data.decode("utf-8").removeprefix("\ufeff").replace("\r\n", "\n")
