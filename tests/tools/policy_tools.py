"""Masks of the fixed rules by their definition, pair by pair."""

import math

import numpy as np


def by_position(policy, T):  # -> [T, T], one mask of the two alike
    qk = np.zeros((2, 3, T, 0), np.float32)
    mask = policy.log_mask(qk, qk, 0.0, 1.0)
    assert mask.shape == (2, T, T) and mask.dtype == np.float32 and (mask[0] == mask[1]).all()
    assert set(np.unique(mask)) <= {0, -math.inf}
    return mask[0] == 0


def pairs(T, stays):  # the definition, pair by pair; a token and those after it are not the rule's business
    return np.array([[j >= i or bool(stays(i, j)) for j in range(T)] for i in range(T)])


def heavy_by_definition(n, w, q, k, log_other, scale):  # [H, T, D] x 2, [T, T] -> live [T, T], dropped [T, T]
    """From scratch for every row: rank all candidates by the attention of all rows so far, keep the first n."""
    H, T, _ = q.shape
    live, weights, dropped = np.zeros((T, T), bool), np.zeros((H, T, T)), set()
    own = np.zeros((T, T), bool)
    for i in range(T):
        alive = [j for j in range(i) if j not in dropped and log_other[i, j] > -np.inf]
        ranked = sorted((j for j in alive if j <= i - w), key=lambda j: (weights[:, :i, j].sum(), j), reverse=True)
        dropped |= set(ranked[n:])
        own[i] = [j in dropped for j in range(T)]
        row = [j for j in [*alive, i] if j not in dropped]
        live[i, row] = True
        for h in range(H):
            e = np.exp(q[h, i] @ k[h, row].T * scale + log_other[i, row])
            weights[h, i, row] = e / e.sum()
    return live, own
