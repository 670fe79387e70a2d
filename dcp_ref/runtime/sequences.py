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
    """The sequences of a cache, each under an integer that is never used twice; `released` says which are gone."""

    def __init__(self, released: Callable[[Any], Any] = lambda sequence: False) -> None:
        self._sequences: dict[int, Any] = {}
        self._next, self._released = itertools.count(), released

    def add(self, sequence: Any) -> int:
        """Keep a sequence; returns its handle."""
        handle = next(self._next)
        self._sequences[handle] = sequence
        return handle

    def forget(self, handle: int) -> None:
        """Stop keeping a sequence, if it is there."""
        self._sequences.pop(int(handle), None)

    def replace(self, handles: list[int], sequences: list[Any]) -> None:
        """Put other sequences under handles that are in use, all at once."""
        self._sequences.update(zip(map(int, handles), sequences, strict=True))

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
