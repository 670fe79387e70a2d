"""Whose turn it is: threads wait for each other, and a forked child does not wait for threads that it does not have."""

import functools
import os
import threading
from collections.abc import Callable
from typing import Any


class Turns:
    """`with turns:` lets one thread in at a time, and that thread again.

    Raises RuntimeError in a forked child when a thread of the parent was inside at the fork: what it guards may then be
    half changed, and nobody will leave.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._lock = threading.RLock()
        self._process: int | None = None  # of the thread that is inside

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            if self._process not in (None, os.getpid()):
                raise RuntimeError(f"this {self._what} was in use by another thread when the process was forked: "
                                   "make a new one in the child")
            self._lock.acquire()
        self._process = os.getpid()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def in_turn(method: Callable) -> Callable:
    """A method whose object has `_turns`. C runs without Python's global lock: threads that share one wait."""

    @functools.wraps(method)
    def waiting(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self._turns:
            return method(self, *args, **kwargs)

    return waiting
