"""What both caches keep besides tokens: sequences under handles, and totals."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Stats(NamedTuple):
    """Totals over layers and sequences.

    bytes_reserved includes free pages; bytes_scratch is working memory, sized for the largest step so far.
    """

    live_tokens: int
    slots: int
    bytes_owned: int
    bytes_reserved: int
    bytes_scratch: int = 0


class Handles:
    """The sequences of a cache, each under an integer that is never used twice; `released` says which are gone.

    A change makes a new dict, which takes the old one's place unless a signal's handler or a thread came between.
    """

    def __init__(self, released: Callable[[Any], Any] = lambda sequence: False) -> None:
        self._sequences: dict[int, Any] = {}
        self._next, self._released = itertools.count(), released

    def add(self, sequence: Any) -> int:
        """Keep a sequence; returns its handle."""
        handle = next(self._next)
        while not self._exchange(now := self._sequences, now | {handle: sequence}):
            continue
        return handle

    def forget(self, handle: int) -> None:
        """Stop keeping a sequence, if it is there."""
        while True:
            now = self._sequences
            left = dict(now)
            left.pop(int(handle), None)
            if self._exchange(now, left):
                return

    def replace(self, handles: list[int], old: list[Any], new: list[Any]) -> bool:
        """Put the sequences `new` in place of `old`, all at once; False, and no change, where `old` is not there."""
        while True:
            now = self._sequences
            if any(now.get(int(handle)) is not sequence for handle, sequence in zip(handles, old, strict=True)):
                return False
            if self._exchange(now, now | dict(zip(map(int, handles), new, strict=True))):
                return True

    def _exchange(self, now: dict[int, Any], changed: dict[int, Any]) -> bool:
        # On one line, without a call: nothing comes between looking and taking.
        if self._sequences is now: self._sequences = changed; return True  # noqa: E701, E702
        return False

    def __getitem__(self, handle: int) -> Any:
        return self.distinct([handle])[0]

    def all(self) -> list[Any]:
        """All sequences."""
        return list(self._sequences.values())

    def distinct(self, handles: list[int]) -> list[Any]:
        """The sequences of these handles. Raises ValueError, naming an unknown, released or repeated one."""
        found = []
        for handle in handles:
            integer = isinstance(handle, (int, np.integer)) and not isinstance(handle, bool)
            sequence = self._sequences.get(int(handle)) if integer else None
            if sequence is None or self._released(sequence):
                raise ValueError(f"sequence {handle!r} is unknown or was released")
            found.append(sequence)
        if len(set(handles)) < len(handles):
            repeated = next(handle for handle in handles if handles.count(handle) > 1)
            raise ValueError(f"sequence {repeated!r} appears twice")
        return found
