"""Shared by both caches: sequences under handles, and checks of arguments.

A check names the culprit, before anything is changed.
"""

import itertools
import operator
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from dcp_ref.config import Config
from dcp_ref.policies import Policy

NOTHING = np.zeros((0, 2), np.int32)  # pairs (row, position)


class CacheFull(MemoryError):
    """A cache would need more bytes than its bound. It is as it was before the call."""


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
        """Stop keeping a sequence, if it is there; and those that are released, whose forgetting was interrupted."""
        while True:
            now = self._sequences
            left = {h: sequence for h, sequence in now.items() if h != int(handle) and not self._released(sequence)}
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

    def all_but(self, handles: list[int]) -> list[Any]:
        """All sequences but those of these handles."""
        without = set(map(int, handles))
        return [sequence for handle, sequence in self._sequences.items() if handle not in without]

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


class StepInput(NamedTuple):
    """The new tokens of several sequences in one layer, checked: N rows in all."""

    q: np.ndarray  # [N, C] float32, as are k and v
    k: np.ndarray
    v: np.ndarray
    q_int: np.ndarray  # [N, r] float32, r = 0 without learned dropping
    k_int: np.ndarray
    beta: float
    inherited: np.ndarray  # [n, 2] int32: (row, position)


def check_input(config: Config, policy: Policy, rows: int, q, k, v, q_int, k_int, beta: float, inherited) -> StepInput:
    """The arrays of a step of `rows` tokens. q_int and k_int must be None unless the policy is learned.

    An array may be columns of a wider one. It is copied if it is not aligned, or if the numbers of a row do not stand
    side by side; nothing is converted.
    Raises TypeError or ValueError, naming the argument.
    """
    r = policy.rank(config)
    if r == 0:
        if q_int is not None or k_int is not None:
            raise ValueError(f"q_int and k_int must be None when the policy is {policy}")
        q_int = k_int = np.zeros((rows, 0), np.float32)
    wide, narrow = (rows, config.n_embd), (rows, r)
    return StepInput(_floats("q", q, wide), _floats("k", k, wide), _floats("v", v, wide),
                     _floats("q_int", q_int, narrow), _floats("k_int", k_int, narrow), float(beta),
                     _inherited(inherited, rows))


def may_drop(config: Config, policy: Policy) -> bool:
    """Whether a step can drop anything: by a rule, or because the layer before did."""
    return policy.learned or policy.window is not None or policy.rule is not None or config.propagate_in_depth


def check_counts(counts: Iterable[int], n_sequences: int) -> list[int]:
    """The counts of new tokens, one a sequence, as a list. Raises TypeError or ValueError."""
    counts = [operator.index(count) for count in counts]
    if len(counts) != n_sequences or any(count < 0 for count in counts):
        raise ValueError(f"counts must be {n_sequences} integers of 0 or more, one a sequence, not {counts}")
    return counts


def check_pinned(pinned: Any, rows: int) -> np.ndarray | None:
    """The pinned rows of a cache's `reserve`, [rows]. Raises ValueError."""
    if pinned is None:
        return None
    if not isinstance(pinned, np.ndarray) or pinned.dtype != bool or pinned.shape != (rows,):
        raise ValueError(f"pinned must be None or booleans [{rows}], one for each token, not {pinned!r}")
    return np.array(pinned)  # contiguous, and the caller's to change no longer


def check_positions(config: Config, sequences: list[int], seen: list[int], counts: list[int]) -> None:
    """Raises ValueError, naming the sequence, when a new token would have no position."""
    for sequence, before, count in zip(sequences, seen, counts, strict=True):
        if before + count > config.n_positions:
            raise ValueError(f"sequence {sequence}: position {before + count - 1} is not below n_positions "
                             f"({config.n_positions})")


def check_max_bytes(max_bytes: int | None) -> int | None:
    """The bound of a cache. Raises TypeError or ValueError."""
    if max_bytes is not None and (isinstance(max_bytes, bool) or operator.index(max_bytes) < 1):
        raise ValueError(f"max_bytes must be positive or None, not {max_bytes}")
    return max_bytes


def check_bytes(needed: int, max_bytes: int | None) -> None:
    """Raises CacheFull when more bytes are needed than the bound; None is no bound."""
    if max_bytes is not None and needed > max_bytes:
        raise CacheFull(f"the cache needs {needed} bytes, and its bound is {max_bytes}: "
                        "release a sequence, or give a larger max_cache_bytes")


def check_layer(config: Config, layer: int) -> int:
    """A layer of the model. Raises TypeError or ValueError."""
    layer = operator.index(layer)
    if not 0 <= layer < config.n_layer:
        raise ValueError(f"layer must be 0 .. {config.n_layer - 1}, not {layer}")
    return layer


def _floats(name: str, x, shape: tuple[int, int]) -> np.ndarray:
    if not isinstance(x, np.ndarray) or x.dtype != np.float32:
        raise TypeError(f"{name} must be a float32 array, not {getattr(x, 'dtype', type(x).__name__)}")
    if x.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, not {x.shape}")
    x = np.asarray(x)  # a subclass could index or compare in its own way
    return x if x.strides[-1] == 4 and x.flags.aligned else np.array(x, order="C")


def _inherited(pairs, rows: int) -> np.ndarray:
    if pairs is None:
        return NOTHING
    if not isinstance(pairs, np.ndarray) or pairs.dtype != np.int32:
        raise TypeError(f"inherited must be an int32 array, not {getattr(pairs, 'dtype', type(pairs).__name__)}")
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"inherited must have shape (n, 2), not {pairs.shape}")
    row = pairs[:, 0]
    if row.size and (row[0] < 0 or row[-1] >= rows or np.any(np.diff(row) < 0)):
        raise ValueError(f"inherited: rows must ascend from 0 to at most {rows - 1}")
    return np.require(pairs, requirements=["C", "A"])
