"""The definition in float64, one token of one sequence in one layer at a time: docs/specification.md as code."""

import math
from typing import Any, NamedTuple

import numpy as np

from dcp_ref.testing.cases import Case


class Tokens(NamedTuple):
    """The live tokens of a sequence in a layer. `masks`: the live positions after each token so far."""

    seen: int
    position: np.ndarray  # [N]
    k: np.ndarray  # [N, C]
    v: np.ndarray  # [N, C]
    k_int: np.ndarray  # [N, r]
    pinned: np.ndarray  # bool [N]
    most: int = 0  # most tokens that were ever live
    masks: tuple[Any, ...] = ()


class Decisions(NamedTuple):
    """About each live token: its score, whether it leaves, and whether rounding could decide otherwise. [N] each."""

    s: np.ndarray
    gone: np.ndarray
    close: np.ndarray


def empty(channels: int, rank: int) -> Tokens:
    """The tokens of a new sequence: none."""
    none = np.zeros((0, channels))
    return Tokens(0, np.zeros(0, int), none, none, np.zeros((0, rank)), np.zeros(0, bool))


def decisions(case: Case, tokens: Tokens, layer: int, row: int, above: np.ndarray | None, eps: float) -> Decisions:
    """What the next token, the given row of the case, decides. `above`: the live positions of the layer before then.

    `eps` is the rounding of the type that scores are computed in.
    """
    i, position, beta = tokens.seen, tokens.position, float(case.beta[layer])
    q_int, root = case.q_int[layer, row].astype(float), math.sqrt(case.q_int.shape[-1])
    inherited = np.zeros(len(position), bool) if above is None else ~np.isin(position, above)  # point 3
    with np.errstate(invalid="ignore"):
        s = tokens.k_int @ q_int / root + beta  # point 4
        size = np.abs(tokens.k_int) @ np.abs(q_int) / root + abs(beta) + abs(case.threshold)
        close = np.abs(s - case.threshold) < (len(q_int) + 4) * eps * size
    judged = (i - position > case.config.int_delay) & case.policy.learned & ~inherited & ~tokens.pinned  # point 6
    by_position = ~case.policy.stays(i, position) & ~tokens.pinned
    gone = inherited | judged & ~(s > case.threshold) | by_position  # point 5: a tie or a NaN drops
    while case.policy.budget is not None and (judged & ~gone).sum() > case.policy.budget:
        gone[np.argmin(np.where(judged & ~gone, s, np.inf))] = True  # the first of the lowest
    return Decisions(s, gone, close & judged & ~by_position & (not case.exact))


def after(tokens: Tokens, gone: np.ndarray, k: np.ndarray, v: np.ndarray, k_int: np.ndarray, pinned: bool) -> Tokens:
    """The tokens without those that leave, and with the next one, which never drops itself (points 7 and 8)."""
    position = np.append(tokens.position[~gone], tokens.seen)
    k, v, k_int = (np.vstack([old[~gone], new]) for old, new in ((tokens.k, k), (tokens.v, v), (tokens.k_int, k_int)))
    most = max(tokens.most, len(position))
    pins = np.append(tokens.pinned[~gone], pinned)
    return Tokens(tokens.seen + 1, position, k, v, k_int, pins, most, (*tokens.masks, position))


def attention(q, k, v, n_head, scale):  # [C], [N, C], [N, C] -> [C]
    """softmax(q k^T scale) v over the live tokens, head by head, in the type of the arrays."""
    q = q.reshape(n_head, 1, -1)
    k, v = (x.reshape(len(x), n_head, -1).swapaxes(0, 1) for x in (k, v))  # [H, N, D]
    a = (k * q).sum(-1, dtype=q.dtype) * q.dtype.type(scale)  # [H, N]
    p = np.exp(a - a.max(-1, keepdims=True))
    return (p[..., None] * v).sum(1, dtype=q.dtype).ravel() / np.repeat(p.sum(-1, dtype=q.dtype), q.shape[-1])
