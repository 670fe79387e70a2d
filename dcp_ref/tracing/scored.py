"""The scores of many pairs at once, and of each drop's score what the parts of the residual stream gave to it."""

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dcp_ref.runtime.checks import check_layer
from dcp_ref.tracing.drops import scores_of_pairs
from dcp_ref.tracing.replay import projected

if TYPE_CHECKING:
    from dcp_ref.tracing.record import Trace


class Pairs(NamedTuple):
    """Pairs (i, j), j < i, in ascending order, and their scores."""

    i: np.ndarray  # int64 [n]
    j: np.ndarray  # int64 [n]
    score: np.ndarray  # float32 [n]


class Parts(NamedTuple):
    """Of each drop's score - beta: what each part of the query's hidden state gave, and each of the key's.

    Columns are embedding, position, h.0.attn, h.0.mlp, ..., and ln_1.bias; NaN where a layer has no such part.
    """

    query: np.ndarray  # float32 [D, 1 + 2 L]
    key: np.ndarray  # float32 [D, 1 + 2 L]


def part_names(layer: int) -> tuple[str, ...]:
    """The parts of a layer's input, in order, and ln_1's bias."""
    return ("embedding", "position", *(f"h.{n}.{part}" for n in range(layer) for part in ("attn", "mlp")), "ln_1.bias")


def pairs_of(trace: "Trace", layer: int) -> Pairs:
    """The pairs that a layer judged. Raises ValueError where the policy is not learned."""
    layer, T = check_layer(trace.config, layer), len(trace.ids)
    i, j = np.nonzero(np.tri(T, k=-1, dtype=bool) & (np.arange(T)[:, None] <= trace.left[layer]))
    return Pairs(i, j, scores_of_pairs(trace, layer, i, j))


def parts_of(trace: "Trace") -> Parts:
    """The parts of all drops."""
    (q, k, _), (layers, position, by, *_) = trace.scored, trace.drops
    query = np.full((len(layers), 1 + 2 * trace.config.n_layer), np.nan, np.float32)
    key, scale = query.copy(), 1 / math.sqrt(q.shape[2])
    for layer in range(trace.config.n_layer):
        at = np.flatnonzero(layers == layer)
        i, j = by[at], position[at]
        of_q, of_k = projected(trace.replayed, trace.with_weights, layer, np.arange(len(trace.ids)))
        columns = [*range(2 + 2 * layer), query.shape[1] - 1]  # ln_1's bias is the last
        query[np.ix_(at, columns)] = np.einsum("pnr,nr->np", of_q[:, i], k[layer, j]) * scale
        key[np.ix_(at, columns)] = np.einsum("pnr,nr->np", of_k[:, j], q[layer, i]) * scale
    return Parts(query, key)
