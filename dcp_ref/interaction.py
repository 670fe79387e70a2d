"""What is dropped: interaction scores, the gate on each, and their cumulative product (the paper's "Adaptively Sparse
Attention").

    s[i, j] = q_int[i] . k_int[j] / sqrt(r) + beta             for j < i
    keep[i, j] = alpha_sigmoid(s[i, j])                        1 where i - j <= delay; with delay = 0, where i = j
    I[i, j] = keep[j+1, j] ... keep[i, j]                      once gone, gone for good

A product of many gates underflows, and its backward would divide by them. So the code works with logarithms, whose sum
down the queries is the product's. log 0 is a true -inf: no epsilon.
"""

import math

import numpy as np

from dcp_ref.layers import project_backward
from dcp_ref.sigmoid import alpha_sigmoid, log_derivative


def scores(x, w_q, w_k, beta):  # [..., T, C], [C, r], [C, r], [1] -> [..., T, T]
    """s[i, j] of every pair, also of those j >= i that are never used."""
    q, k = x @ w_q, x @ w_k
    scale = 1 / math.sqrt(w_q.shape[1])
    return q @ k.swapaxes(-1, -2) * scale + beta, (x, q, k, w_q, w_k, scale)


def scores_backward(ds, saved):  # [..., T, T] -> [..., T, C], [C, r], [C, r], [1]
    x, q, k, w_q, w_k, scale = saved
    dbeta = ds.sum(keepdims=True).reshape(1)  # s = q @ k.T * scale + beta
    dq, dk = ds @ k * scale, ds.swapaxes(-1, -2) @ q * scale
    dx = dq @ w_q.T + dk @ w_k.T  # q, k = x @ w_q, x @ w_k
    return dx, project_backward(dq, x), project_backward(dk, x), dbeta


def log_mask(s, alpha, delay=0):  # [..., T, T] -> [..., T, T]
    """log I: 0 where token j is kept whole (and for j >= i - delay), -inf where it is gone."""
    T = s.shape[-1]
    judged = np.tri(T, k=-1 - min(delay, T), dtype=bool)  # i - j > delay
    keep = alpha_sigmoid(np.where(judged, s, np.inf), alpha)  # an infinite score keeps
    with np.errstate(divide="ignore"):
        log_keep = np.log(keep)
    log_keep[np.logical_or.accumulate(keep == 0, axis=-2)] = -np.inf  # gone for good, also where later scores are NaN
    return log_keep.cumsum(-2), (keep, alpha)


def log_mask_backward(dlog_i, saved):  # [..., T, T] -> [..., T, T]
    keep, alpha = saved
    dlog_keep = np.flip(np.flip(dlog_i, -2).cumsum(-2), -2)  # log_i = log_keep.cumsum(-2): a gate is in all later rows
    return dlog_keep * log_derivative(keep, alpha)  # log_keep = log(keep): 0 where the gate is saturated


def sparsity(log_i):  # [..., T, T] -> scalar
    """R, the mean of I over the pairs j < i (0 when T = 1): what gamma multiplies in the loss."""
    mask = np.exp(log_i)
    mask *= np.tri(mask.shape[-1], k=-1, dtype=mask.dtype)  # j < i
    n_pairs = max(mask.size // mask.shape[-1] * (mask.shape[-1] - 1) // 2, 1)
    return mask.sum() / n_pairs, (mask, n_pairs)


def sparsity_backward(dr, saved):  # scalar -> [..., T, T]
    mask, n_pairs = saved
    return mask * (dr / n_pairs)  # d exp(log_i) = exp(log_i): 0 where dropped
