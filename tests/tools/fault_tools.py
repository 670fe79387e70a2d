"""Failures at every place where the system is asked for something, and at every line of the package."""

import builtins
import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import dcp_ref

PACKAGE = str(Path(dcp_ref.__file__).parent)

CALLS = [(os, name) for name in ("open", "close", "fsync", "replace", "rename", "mkdir", "rmdir", "unlink", "chmod",
                                 "listdir", "scandir", "stat")] + [(io, "open"), (builtins, "open")]


@contextlib.contextmanager
def failing_at(n: int, fail: Callable[[], None], after: bool = False) -> Iterator[Callable[[], bool]]:
    """Inside, `fail` is called at call number n of CALLS, before or after it is made. Yields whether it was."""
    count, originals = 0, [(owner, name, getattr(owner, name)) for owner, name in CALLS]

    def wrapped(original):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == n and not after:
                fail()
            result = original(*args, **kwargs)
            if count == n and after:
                count += 1
                if hasattr(result, "close"):
                    result.close()  # or it would be said that nobody has
                fail()
            return result
        return call

    for owner, name, original in originals:
        setattr(owner, name, wrapped(original))
    try:
        yield lambda: count >= n
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


def fails_at_line(n: int, error: BaseException, call: Callable[[], object]) -> bool:
    """Calls `call`, and raises the error before line number n of the package's. Returns whether there was that line.

    An error that `call` deals with, or raises from another one, counts too.
    """
    hit = False

    def fail():
        nonlocal hit
        hit = True
        raise error

    try:
        at_line(n, fail, call)
    except type(error) as raised:
        if raised is not error:
            raise
    return hit


def at_line(n: int, act: Callable[[], object], call: Callable[[], object]) -> None:
    """Calls `call`, and `act` before line number n of the package's, if there is one."""
    left = n

    def trace(frame, event, _):
        nonlocal left
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                act()
        return trace

    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(None)
