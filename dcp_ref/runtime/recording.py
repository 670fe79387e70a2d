"""Kernel calls, kept to be made again: where a step is short, what Python does between kernels is a tenth of it."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

Calls = list[tuple[Callable, tuple]]


class _Recording(threading.local):
    calls: Calls | None = None


_recording = _Recording()


def call(function: Callable, *arguments: Any) -> Any:
    """function(*arguments), which is kept where this thread records."""
    if _recording.calls is not None:
        _recording.calls.append((function, arguments))
    return function(*arguments)


def again(calls: Calls) -> None:
    """Make these calls, in order."""
    for function, arguments in calls:
        function(*arguments)


@contextlib.contextmanager
def recording(wanted: bool = True) -> Iterator[Calls]:
    """The list that this thread's calls are added to, in order; or to none, until the body ends, where not `wanted`."""
    outer, calls = _recording.calls, Calls()
    try:
        _recording.calls = calls if wanted else None
        yield calls
    finally:
        _recording.calls = outer
