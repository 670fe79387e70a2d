"""The lock of a cache: one thread at a time, and no hanging in a forked child."""

import functools
import os
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

Method = TypeVar("Method", bound=Callable[..., Any])


def locked(method: Method) -> Method:
    """Wraps a method of an object with a `lock`, a ForkAwareLock: it runs while holding the lock."""

    @functools.wraps(method)
    def inside(self: Any, *args: Any, **kwargs: Any) -> Any:
        if sys.is_finalizing():
            self.lock.check_end()
        # On one line, and with a lock written in C: so no interrupt comes between taking the lock and the method.
        with self.lock.held: return method(self, *args, **kwargs)  # noqa: E701

    return inside  # type: ignore[return-value]


class InterpreterEnds(RuntimeError):
    """A finalizer would wait for a daemon thread that never goes on, as the interpreter ends."""


class ForkAwareLock:
    """A re-entrant lock that raises RuntimeError, instead of hanging, in a forked child whose parent held it.

    In such a child, what the lock guards may be half changed, by a thread that only the parent has. `held` is the lock
    itself.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.held: Any = threading.RLock()
        _locks.add(self)

    def check_end(self) -> None:
        """Raises InterpreterEnds when another thread holds the lock. Called only as the interpreter ends."""
        if not self.held.acquire(blocking=False):
            raise InterpreterEnds(f"this {self.what} is in use by a daemon thread, and the interpreter ends")
        self.held.release()


class _Broken:
    """Takes the place of a lock that a thread of the parent process held."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> NoReturn:
        raise RuntimeError(f"this {self.what} was in use by another thread when the process was forked: "
                           "make a new one in the child")

    def __exit__(self, *_: object) -> None: ...


_locks: weakref.WeakSet[ForkAwareLock] = weakref.WeakSet()


def _after_fork() -> None:
    for lock in _locks:
        if isinstance(lock.held, _Broken):
            continue
        if lock.held.acquire(blocking=False):  # nobody's, or this thread's
            lock.held.release()
        else:
            lock.held = _Broken(lock.what)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
