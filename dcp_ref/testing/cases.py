"""Cases: a history of calls for a cache, with the numbers that each call gets."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from dcp_ref.config import Config
from dcp_ref.policies import Policy

NEW, FORK, RELEASE, STEP, FEED, RESTORE = range(6)  # kinds of operations, in a case's `ops` and in exported files


class Focus(NamedTuple):
    """What the cases of a check look like. A sequence gets at most `pages` pages of tokens.

    `scores`: "clear" (exact, never a tie), "ties" (exact), "special" (clear, with NaN and infinities), "own" (only the
    first token's own score is negative), "low" (all are negative), "high" (none is), "alternate" (clear; every second
    token drops nothing), "real" (no integers; one score is very close).
    `outputs`: which rows' attention is judged: "none", "quiet" (those that drop nothing) or "all".
    """

    scores: str = "clear"
    calls: int = 6
    layers: int = 1
    sequences: int = 1
    rows: int = 1  # most tokens of one sequence in a step
    pages: int = 1
    delay: bool = False
    depth: bool = False
    fork: bool = False
    release: bool = False
    long: bool = False  # begin with about a page of tokens that stay for a while
    saved: bool = False
    pins: bool = False
    budget: bool = False
    large: bool = False  # numbers that are too large for arithmetic, or for interaction keys, in 16 bits
    many: int = 0  # begin with so many tokens that stay for a while
    kv: str = "float32"
    outputs: str = "none"


class Case(NamedTuple):
    """One history. `ops` are rows of three integers; sequences are numbered in the order in which they begin.

    (NEW, sequence, 0), (FORK, parent, child), (RESTORE, saved, child), (RELEASE, sequence, 0); a step is (STEP, parts,
    0) and then, for each part, (FEED, sequence, count). Steps take the rows of q, k, v [L, N, C] and q_int, k_int
    [L, N, r] in order.
    """

    check: str
    config: Config
    policy: Policy
    threshold: float
    kv: str
    exact: bool  # whether every score is exact in any float type
    ops: tuple[tuple[int, int, int], ...]
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    q_int: np.ndarray
    k_int: np.ndarray
    beta: np.ndarray  # [L] float32
    pinned: np.ndarray  # [N] bool: tokens that no layer drops
    draws: tuple[int, ...] = ()  # the integers that it was made from


class Call(NamedTuple):
    """One call of a history: `kind` is NEW, FORK, RELEASE, RESTORE or STEP; `first` is a step's first row."""

    kind: int
    sequence: int = 0
    child: int = 0
    parts: tuple[tuple[int, int], ...] = ()  # of a step: (sequence, count)
    first: int = 0

    @property
    def rows(self) -> int:
        return sum(count for _, count in self.parts)


def calls(case: Case) -> Iterator[Call]:
    """The calls of a case, in order."""
    first, ops = 0, iter(case.ops)
    for kind, a, b in ops:
        if kind == STEP:
            call = Call(STEP, parts=tuple(next(ops)[1:] for _ in range(a)), first=first)
            first += call.rows
            yield call
        else:
            yield Call(kind, a, b)


def options(case: Case) -> dict[str, Any]:
    """The keyword arguments of `make`: only those that are not the defaults, which every cache has."""
    given: dict[str, Any] = {"threshold": case.threshold, "kv": case.kv}
    return {name: value for name, value in given.items() if value not in (0.0, "float32")}
