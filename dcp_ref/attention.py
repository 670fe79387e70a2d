"""Attention over what is left: softmax(q k^T scale + log I) v, over j <= i.

Both directions go by blocks of queries, and leave out the keys that a whole block has dropped: the more is pruned, the
less there is to do.
"""

import numpy as np

from dcp_ref.layers import any_live, row_blocks, softmax, softmax_backward


def attention(q, k, v, log_i, scale):  # [..., H, T, D] x 3, [..., T, T] -> [..., H, T, D]
    """One mask serves all heads. log I = 0 changes nothing; log I = -inf gives a weight of exactly 0."""
    y, blocks = np.empty_like(v), []
    for rows, cols in row_blocks(q.shape[-2]):
        earlier = np.tri(rows.stop - rows.start, rows.stop, rows.start, dtype=bool)  # j <= i
        log_block = np.where(earlier, log_i[..., rows, cols], -np.inf)
        live = any_live(log_block, cols)
        a = (q[..., rows, :] * scale) @ k[..., live, :].swapaxes(-1, -2)
        a += log_block[..., None, :, live]
        p, _ = softmax(a)
        y[..., rows, :] = p @ v[..., live, :]
        blocks.append((rows, live, p))
    return y, (q, k, v, blocks, scale)


def attention_backward(dy, saved):  # [..., H, T, D] -> [..., H, T, D] x 3, [..., T, T]
    q, k, v, blocks, scale = saved
    dq, dk, dv = np.empty_like(q), np.zeros_like(k), np.zeros_like(v)
    dlog_i = np.zeros((*q.shape[:-3], *q.shape[-2:-1] * 2), q.dtype)
    for rows, live, p in blocks:
        dp = dy[..., rows, :] @ v[..., live, :].swapaxes(-1, -2)  # y = p @ v
        dv[..., live, :] += p.swapaxes(-1, -2) @ dy[..., rows, :]
        da = softmax_backward(dp, p)  # p = softmax(a)
        dlog_i[..., rows, live] = da.sum(-3)  # a = (q * scale) @ k.T + log_i, which the heads share
        da *= scale
        dq[..., rows, :] = da @ k[..., live, :]
        dk[..., live, :] += da.swapaxes(-1, -2) @ q[..., rows, :]
    return dq, dk, dv, dlog_i


def split_heads(x, n_head):  # [..., T, C] -> [..., H, T, D]
    return x.reshape(*x.shape[:-1], n_head, -1).swapaxes(-3, -2)


def merge_heads(x):  # [..., H, T, D] -> [..., T, C]
    x = x.swapaxes(-3, -2)
    return x.reshape(*x.shape[:-2], -1)
