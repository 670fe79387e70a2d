"""The command's standard streams, where one of them is closed, full or no longer read; and what is said on them."""

import contextlib
import io
import os
import re
import shlex
import sys
from typing import Any, TextIO

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # would end a line, or control a terminal


def fill() -> bool:
    """Open the null device in place of closed streams: else the next file opened would get a stream's number, and what
    is meant for that stream would go into the file.

    Returns whether stdout was closed. Writing to it fails then, as before.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if number == 1 else os.O_RDWR)  # gets the lowest free number: this one
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (open as long as the process lives)
    if sys.stdout is not None:
        return False
    sys.stdout = open(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")  # noqa: SIM115 (the same)
    return True


class Heedless:
    """A stream for messages that never raises: after the first message that it cannot write, it drops them all."""

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
    """Send the stream's buffer, and all later output, to the null device: else the interpreter would fail at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
    with contextlib.suppress(OSError):
        stream.flush()


def as_utf8(stream: TextIO) -> None:
    """Write UTF-8 whatever the locale, and line by line into a pipe too; file names that are no UTF-8 stay as they are
    on the disk."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(encoding="utf-8", errors="surrogateescape", line_buffering=True)


def say(name: str, message: object) -> None:
    """Write one line on stderr, control characters escaped. Spaces stay: they may belong to a file's name."""
    line = CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), str(message))
    print(f"{name}: {line}", file=sys.stderr)


def ready(directory: str) -> None:
    """Say how to generate text with a model that is now in this directory."""
    print(f'ready: dcp-ref generate "The old man looked at the sea" --model {shlex.quote(directory)}')
