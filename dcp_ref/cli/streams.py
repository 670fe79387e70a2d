"""The command's standard streams, where one of them is closed, full, or read by nobody."""

import contextlib
import io
import os
import re
import sys
from typing import Any, TextIO

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # what would end a line, or steer a terminal


def fill() -> bool:
    """Put the null device where a stream is closed: else the next file opened got its number, and what it is sent.

    Returns whether stdout was closed; then what is written there still fails.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if number == 1 else os.O_RDWR)  # gets the lowest number free: this one
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (as long as the process)
    if sys.stdout is not None:
        return False
    sys.stdout = open(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")  # noqa: SIM115 (the same)
    return True


class Heedless:
    """A stream for messages, which ends nothing: from the first one that it cannot write on, it drops them."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            silence(self._stream)
        return len(text)

    def flush(self) -> None:
        self.write("")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def silence(stream: TextIO) -> None:
    """Send what a stream still holds, and all that comes, nowhere: the interpreter would try, and fail, at its exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
    with contextlib.suppress(OSError):
        stream.flush()


def as_utf8(stream: TextIO) -> None:
    """Text is UTF-8 wherever it goes, and is seen line by line in a pipe too; names that are no text are as on disk."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(encoding="utf-8", errors="surrogateescape", line_buffering=True)


def say(name: str, message: object) -> None:
    """One line on stderr. A message's spaces stay, as they may be a file name's."""
    line = CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), str(message))
    print(f"{name}: {line}", file=sys.stderr)
