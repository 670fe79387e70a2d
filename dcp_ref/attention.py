"""Attention over what is left: softmax(q k^T scale + log I) v, over j <= i."""

import numpy as np

from dcp_ref.layers import softmax, softmax_backward


def attention(q, k, v, log_i, scale):  # [..., H, T, D] x 3, [..., T, T] -> [..., H, T, D]
    """One mask serves all heads. log I = 0 changes nothing; log I = -inf gives a weight of exactly 0."""
    log_i = np.where(np.tri(q.shape[-2], dtype=bool), log_i, -np.inf)  # causal: j <= i
    a = q @ k.swapaxes(-1, -2) * scale + log_i[..., None, :, :]
    p, saved = softmax(a)
    return p @ v, (q, k, v, scale, saved)


def attention_backward(dy, saved):  # [..., H, T, D] -> [..., H, T, D] x 3, [..., T, T]
    q, k, v, scale, p = saved
    dp, dv = dy @ v.swapaxes(-1, -2), p.swapaxes(-1, -2) @ dy  # y = p @ v
    da = softmax_backward(dp, p)  # p = softmax(a)
    dq, dk = da @ k * scale, da.swapaxes(-1, -2) @ q * scale  # a = q @ k.T * scale + log_i
    return dq, dk, dv, da.sum(-3)  # log_i serves all heads


def split_heads(x, n_head):  # [..., T, C] -> [..., H, T, D]
    return x.reshape(*x.shape[:-1], n_head, -1).swapaxes(-3, -2)


def merge_heads(x):  # [..., H, T, D] -> [..., T, C]
    x = x.swapaxes(-3, -2)
    return x.reshape(*x.shape[:-2], -1)
