"""Failures at every place where the system is asked for something."""

import builtins
import contextlib
import io
import os
from collections.abc import Callable, Iterator

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
