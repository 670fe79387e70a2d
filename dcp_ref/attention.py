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


def log_mask_by_rows(q, k, log_other, scale, drops):  # [H, T, D] x 2, [T, T] -> [T, T]
    """The log mask of a rule that sees what earlier rows left and attended to: row by row, as in decoding.

    drops(i, live, attention): which of the live tokens [N] row i drops, given the attention that each got from the rows
    before, heads summed. `log_other` is the mask of what else drops.
    """
    T = q.shape[1]
    log_own, attention = np.zeros((T, T), q.dtype), np.zeros(T, q.dtype)
    for i in range(T):
        live = np.flatnonzero(log_own[i, :i] + log_other[i, :i] > -np.inf)
        log_own[i:, live[drops(i, live, attention[live])]] = -np.inf
        a = (k[:, : i + 1] @ q[:, i, :, None])[..., 0] * scale  # [H, i + 1]: token i sees itself
        p, _ = softmax(a + (log_own[i, : i + 1] + log_other[i, : i + 1]))
        attention[: i + 1] += p.sum(0)
    return log_own


def split_heads(x, n_head):  # [..., T, C] -> [..., H, T, D]
    return x.reshape(*x.shape[:-1], n_head, -1).swapaxes(-3, -2)


def merge_heads(x):  # [..., H, T, D] -> [..., T, C]
    x = x.swapaxes(-3, -2)
    return x.reshape(*x.shape[:-2], -1)
