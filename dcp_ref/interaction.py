"""What is dropped: interaction scores, the gate on each, and their cumulative product (the paper's "Adaptively Sparse
Attention").

    s[i, j] = q_int[i] . k_int[j] / sqrt(r) + beta             for j < i
    keep[i, j] = alpha_sigmoid(s[i, j]);  1 where i - j <= delay (0 unless told: then keep[j, j] alone)
    I[i, j] = keep[j+1, j] ... keep[i, j]                       once gone, gone for good

A product of many gates underflows, and its backward would divide by them: so all of it is done in logarithms, where
the product is a sum down the queries. log 0 is a true -inf: no epsilon.
"""

import math
import numbers

import numpy as np

from dcp_ref.layers import any_live, project_backward, row_blocks
from dcp_ref.sigmoid import alpha_sigmoid, log_derivative


def scores(x, w_q, w_k, beta):  # [..., T, C], [C, r], [C, r], [1] -> [..., T, T]
    """s[i, j] of every pair, also of those j >= i that are never used."""
    q, k = x @ w_q, x @ w_k
    scale = 1 / math.sqrt(w_q.shape[1])
    s = q @ k.swapaxes(-1, -2)
    s *= scale
    s += beta
    return s, (x, q, k, w_q, w_k, scale)


def scores_backward(ds, saved):  # [..., T, T] -> [..., T, C], [C, r], [C, r], [1]
    x, q, k, w_q, w_k, scale = saved
    dbeta = ds.sum(keepdims=True).reshape(1)  # s = q @ k.T * scale + beta
    dq, dk = ds @ k * scale, ds.swapaxes(-1, -2) @ q * scale
    dx = dq @ w_q.T + dk @ w_k.T  # q, k = x @ w_q, x @ w_k
    return dx, project_backward(dq, x), project_backward(dk, x), dbeta


def log_mask(s, alpha, delay=0):  # [..., T, T] -> [..., T, T]
    """log I: 0 where token j is kept whole (and for j >= i - delay), -inf where it is gone."""
    delay = min(delay, s.shape[-1])
    log_i, blocks = np.zeros_like(s), []
    for rows, cols in row_blocks(s.shape[-1]):
        before = log_i[..., max(rows.start - 1, 0), None, cols]
        live = any_live(before, cols)
        judged = np.tri(rows.stop - rows.start, rows.stop, rows.start - 1 - delay, dtype=bool)[:, live]  # j < i - delay
        p = alpha_sigmoid(np.where(judged, s[..., rows, live], np.inf), alpha)  # an infinite score keeps
        with np.errstate(divide="ignore"):
            log_keep = np.log(p)
        log_keep[np.isneginf(before[..., live]) | cumulative_sum(p == 0)] = -np.inf  # also where later scores are NaN
        log_i[..., rows, cols] = before  # what is gone stays so
        log_i[..., rows, live] += cumulative_sum(log_keep)
        blocks.append((rows, live, p))
    return log_i, (s.shape, blocks, alpha)


def log_mask_backward(dlog_i, saved):  # [..., T, T] -> [..., T, T]
    shape, blocks, alpha = saved
    ds, after = np.zeros(shape, dlog_i.dtype), np.zeros((*shape[:-2], 1, shape[-1]), dlog_i.dtype)
    for rows, live, p in reversed(blocks):
        # log_i = log_keep.cumsum(-2): a gate has its part in all later rows
        dlog_keep = cumulative_sum(dlog_i[..., rows, live][..., ::-1, :])[..., ::-1, :] + after[..., live]
        after[..., live] = dlog_keep[..., :1, :]
        ds[..., rows, live] = dlog_keep * log_derivative(p, alpha)  # 0 where the gate is saturated: log_keep = log(p)
    return ds


def check_threshold(threshold: float, learned: bool) -> float:
    """What scores must exceed for their tokens to stay, at inference. `learned`: whether scores drop anything.

    Raises ValueError when it is no number, or not 0 where there are no scores.
    """
    if not isinstance(threshold, numbers.Real) or isinstance(threshold, bool) or math.isnan(threshold):
        raise ValueError(f"threshold must be a number, not {threshold!r}")
    if threshold != 0 and not learned:
        raise ValueError(f"threshold is {threshold}, but nothing is dropped by a learned score here: leave it 0, or "
                         "use a model with interaction weights and the policy learned")
    return float(threshold)


def cumulative_sum(a):  # [..., T, N] -> [..., T, N]
    """a.cumsum(-2), row by row: NumPy walks down one column after the other, and takes five times as long."""
    total = a.copy()
    for i in range(1, a.shape[-2]):
        total[..., i, :] += total[..., i - 1, :]
    return total


def sparsity(log_i):  # [..., T, T] -> scalar
    """R, the mean of I over the pairs j < i (0 when T = 1): what gamma multiplies in the loss."""
    mask = np.exp(log_i)
    mask *= np.tri(mask.shape[-1], k=-1, dtype=mask.dtype)
    n_pairs = max(mask.size // mask.shape[-1] * (mask.shape[-1] - 1) // 2, 1)
    return mask.sum() / n_pairs, (mask, n_pairs)


def sparsity_backward(dr, saved):  # scalar -> [..., T, T]
    mask, n_pairs = saved
    return mask * (dr / n_pairs)  # d exp(log_i) = exp(log_i): 0 where dropped
