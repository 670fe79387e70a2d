"""What both caches share: handles of sequences, the checked ragged block of a step, the size of a page, statistics."""

import itertools
import mmap
import operator
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from dcp_ref.config import Config
from dcp_ref.runtime.policies import Policy, for_model

NOTHING = np.zeros((0, 2), np.int32)  # pairs (row, position)


class Stats(NamedTuple):
    """Totals over layers and sequences. A sequence owns whole pages of slots; reserved bytes count free pages too,
    scratch is what a step of the largest block so far needs besides."""

    live_tokens: int
    slots: int
    bytes_owned: int
    bytes_reserved: int
    bytes_scratch: int = 0


class CacheFull(MemoryError):
    """A cache would need more bytes than it may hold; it is as it was before."""


class Handles:
    """The sequences of a cache, each under an integer that is never used twice."""

    def __init__(self) -> None:
        self._sequences: dict[int, Any] = {}
        self._next = 0

    def add(self, sequence: Any) -> int:
        """Keep a sequence; returns its handle."""
        handle, self._next = self._next, self._next + 1
        self._sequences[handle] = sequence
        return handle

    def pop(self, handle: int) -> Any:
        """Forget a sequence; returns it."""
        sequence = self[handle]
        del self._sequences[handle]
        return sequence

    def __getitem__(self, handle: int) -> Any:
        if not isinstance(handle, (int, np.integer)) or handle not in self._sequences:
            raise ValueError(f"sequence {handle!r} is unknown or was released")
        return self._sequences[handle]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._sequences.values())

    def distinct(self, handles: Iterable[int]) -> list[Any]:
        """The sequences of all these handles. Raises ValueError, naming an unknown, released or repeated one."""
        handles = list(handles)
        for handle in handles:
            if handles.count(handle) > 1:
                raise ValueError(f"sequence {handle!r} appears twice")
        return [self[handle] for handle in handles]


class Block(NamedTuple):
    """The new tokens of several sequences in one layer: sequence b has counts[b] rows, N rows in all."""

    counts: list[int]
    q: np.ndarray  # [N, C] float32, as are k and v
    k: np.ndarray
    v: np.ndarray
    q_int: np.ndarray  # [N, r] float32, r = 0 without learned dropping
    k_int: np.ndarray
    beta: float
    inherited: np.ndarray  # [n, 2] int32: (row, position)


def check_block(config: Config, seen: list[int], starts: Iterable[int], counts: Iterable[int],
                q, k, v, q_int, k_int, beta: float, inherited, policy: Policy | None = None) -> Block:
    """The arguments of a step, checked; `seen[b]` tokens of sequence b came before.

    Raises TypeError or ValueError, naming the argument.
    """
    counts = check_counts(config, seen, counts)
    check_starts(seen, starts)
    return check_arrays(config, for_model(config, policy), counts, q, k, v, q_int, k_int, beta, inherited)


def check_starts(seen: list[int], starts: Iterable[int]) -> None:
    """`seen[b]` tokens of sequence b came before. Raises TypeError or ValueError."""
    starts = [operator.index(start) for start in starts]
    if starts != seen:
        raise ValueError(f"starts must be the tokens that this layer has seen, {seen}, not {starts}")


def check_arrays(config: Config, policy: Policy, counts: list[int], q, k, v, q_int, k_int, beta: float,
                 inherited) -> Block:
    """The rest of a step's arguments. q_int and k_int must be None unless the policy is learned.

    Rows may be part of wider ones; what is not aligned, or has its numbers apart, is copied, nothing else converted.
    Raises TypeError or ValueError, naming the argument.
    """
    rows, r = sum(counts), policy.rank(config)
    if r == 0:
        if q_int is not None or k_int is not None:
            raise ValueError(f"q_int and k_int must be None when the policy is {policy}")
        q_int = k_int = np.zeros((rows, 0), np.float32)
    wide, narrow = (rows, config.n_embd), (rows, r)
    return Block(counts, _floats("q", q, wide), _floats("k", k, wide), _floats("v", v, wide),
                 _floats("q_int", q_int, narrow), _floats("k_int", k_int, narrow), float(beta),
                 _inherited(inherited, rows))


def check_counts(config: Config, seen: list[int], counts: Iterable[int]) -> list[int]:
    """One count of new tokens a sequence. Raises TypeError or ValueError."""
    counts = [operator.index(count) for count in counts]
    if len(counts) != len(seen) or any(count < 0 for count in counts):
        raise ValueError(f"counts must be {len(seen)} integers of 0 or more, one a sequence, not {counts}")
    for before, count in zip(seen, counts, strict=True):
        if before + count > config.n_positions:
            raise ValueError(f"counts: {before} + {count} tokens are more than n_positions = {config.n_positions}")
    return counts


def check_pages(page_slots: int, max_bytes: int | None) -> None:
    """What a cache is made with. Raises TypeError or ValueError."""
    if isinstance(page_slots, bool) or not 1 <= operator.index(page_slots) <= 32:
        raise ValueError(f"page_slots must be 1 .. 32, not {page_slots}")
    if max_bytes is not None and (isinstance(max_bytes, bool) or operator.index(max_bytes) < 1):
        raise ValueError(f"max_bytes must be positive or None, not {max_bytes}")


def check_bytes(needed: int, max_bytes: int | None) -> None:
    """Raises CacheFull when that many bytes are beyond the bound; None is no bound."""
    if max_bytes is not None and needed > max_bytes:
        raise CacheFull(f"the cache needs {needed} bytes, and its bound is {max_bytes}: "
                        "release a sequence, or give a larger max_cache_bytes")


def page_layout(config: Config, page_slots: int, kv: str, policy: Policy) -> tuple[list[int], list[int]]:
    """In C (csrc/dcp.h): where the parts of the rest of a page start, and the bytes of a page's pieces."""
    H, D, shared = config.n_head, config.head_dim, 4 // np.dtype(kv).itemsize  # numbers that share a word
    scales, sums = H if kv == "int8" else 0, H if policy.heavy is not None else 0
    keys, values = H * -(-D // shared), H * -(-D // 32) * -(-page_slots // shared)
    *starts, rest = itertools.accumulate((scales, scales, policy.rank(config), sums, 1), initial=0)
    pieces = [-(-128 * n // mmap.PAGESIZE) * mmap.PAGESIZE for n in (keys, rest, values)]  # rows of 32 words
    return [128 * n for n in starts], pieces


def page_bytes(config: Config, page_slots: int, kv: str, policy: Policy) -> int:
    """The size of a page in C, in which both caches count."""
    return sum(page_layout(config, page_slots, kv, policy)[1])


def check_layer(config: Config, layer: int) -> int:
    """A layer of the model. Raises TypeError or ValueError."""
    if not 0 <= operator.index(layer) < config.n_layer:
        raise ValueError(f"layer must be 0 .. {config.n_layer - 1}, not {layer}")
    return operator.index(layer)


def _floats(name: str, x, shape: tuple[int, int]) -> np.ndarray:
    if not isinstance(x, np.ndarray) or x.dtype != np.float32:
        raise TypeError(f"{name} must be a float32 array, not {getattr(x, 'dtype', type(x).__name__)}")
    if x.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, not {x.shape}")
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
