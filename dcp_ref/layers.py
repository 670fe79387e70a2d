"""The layers of GPT-2, each a forward and, right below, its backward.

`y, saved = f(x, ...)` and `dx, ... = f_backward(dy, saved)`, where dy is d loss / dy. Shapes are written without the
batch: `...` stands for any leading axes. The dtype is the input's.
"""

import math

import numpy as np


def linear(x, w, b):  # [..., C], [C, K], [K] -> [..., K]
    """x W + b, with W stored [in, out] as GPT-2's Conv1D does."""
    y = x @ w
    y += b  # in place: this function serves training with C's kernels too
    return y, (x, w)


def linear_backward(dy, saved):  # [..., K] -> [..., C], [C, K], [K]
    x, w = saved
    dx = dy @ w.T  # y = x @ w + b
    dw, db = project_backward(dy, x), dy.reshape(-1, dy.shape[-1]).sum(0)
    return dx, dw, db


def project_backward(dy, x):  # [..., K], [..., C] -> [C, K]
    """The gradient of w in y = x @ w."""
    return x.reshape(-1, x.shape[-1]).T @ dy.reshape(-1, dy.shape[-1])


def layer_norm(x, g, b, epsilon):  # [..., C], [C], [C] -> [..., C]
    """(x - mean) / sqrt(variance + epsilon) * g + b, over the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    rstd = 1 / np.sqrt((centred * centred).mean(-1, keepdims=True) + epsilon)
    n = centred * rstd
    return n * g + b, (n, rstd, g)


def layer_norm_backward(dy, saved):  # [..., C] -> [..., C], [C], [C]
    n, rstd, g = saved
    leading = tuple(range(dy.ndim - 1))
    dg, db = (dy * n).sum(leading), dy.sum(leading)  # y = n * g + b
    dn = dy * g
    # n = (x - mean) * rstd: the mean and the variance each take out one direction
    dx = rstd * (dn - dn.mean(-1, keepdims=True) - n * (dn * n).mean(-1, keepdims=True))
    return dx, dg, db


def activation(x, kind):  # any shape
    """`gelu_new` (GPT-2's tanh form), `gelu` (exact, with erf) or `relu`; saved is the derivative dy/dx."""
    if kind == "relu":
        return np.maximum(x, 0), (x > 0).astype(x.dtype)
    if kind == "gelu":
        cdf = ((1 + erf(x / math.sqrt(2))) / 2).astype(x.dtype)
        return x * cdf, cdf + x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    a, b = math.sqrt(2 / math.pi), 0.044715
    t = np.tanh(a * x * (1 + b * x * x))
    return x * (1 + t) / 2, (1 + t + x * (1 - t * t) * a * (1 + 3 * b * x * x)) / 2


def activation_backward(dy, saved):  # any shape
    return dy * saved  # y = f(x), saved = f'(x)


erf = np.vectorize(math.erf, otypes=[np.float64])  # NumPy has none; exact, and slow: only `gelu` models pay


def softmax(a):  # [..., n] -> [..., n]
    """exp(a) / sum exp(a) over the last axis; -inf gives exactly 0. A row must have a finite entry."""
    e = np.exp(a - a.max(-1, keepdims=True))
    p = e / e.sum(-1, keepdims=True)
    return p, p


def softmax_backward(dp, saved):  # [..., n] -> [..., n]
    p = saved
    return p * (dp - (p * dp).sum(-1, keepdims=True))  # p = e / e.sum(), e = exp(a)


def embedding(ids, wte, wpe):  # [..., T], [V, C], [n_positions, C] -> [..., T, C]
    """Token plus position embedding, of tokens at positions 0 to T-1."""
    return wte[ids] + wpe[: ids.shape[-1]], (ids, wte, wpe)


def embedding_backward(dy, saved, dwte=None):  # [..., T, C] -> [V, C], [n_positions, C]
    """`dwte` is a gradient that tied weights already have, which is then added to in place."""
    ids, wte, wpe = saved
    dwte, dwpe = np.zeros_like(wte) if dwte is None else dwte, np.zeros_like(wpe)
    np.add.at(dwte, ids, dy)  # y = wte[ids] + wpe[:T]: a token that occurs twice gets both gradients
    dwpe[: ids.shape[-1]] = dy.reshape(-1, *dy.shape[-2:]).sum(0)
    return dwte, dwpe


def log_softmax(a):  # [..., n] -> [..., n]
    """a - log sum exp(a) over the last axis."""
    e = a - a.max(-1, keepdims=True)
    return e - np.log(np.exp(e).sum(-1, keepdims=True))


def cross_entropy(logits, targets):  # [..., V], [...] -> scalar
    """Mean of -log softmax(logits)[target] in nats over the targets that are not -1."""
    counted = targets != -1
    n, at = max(counted.sum(), 1), np.where(counted, targets, 0)[..., None]
    log_p = log_softmax(logits)
    nll = -np.take_along_axis(log_p, at, -1)[..., 0]
    return nll[counted].sum() / n, (log_p, at, counted[..., None] / n)


def cross_entropy_backward(dloss, saved):  # scalar -> [..., V]
    log_p, at, weight = saved
    dlogits = np.exp(log_p)
    np.put_along_axis(dlogits, at, np.take_along_axis(dlogits, at, -1) - 1, -1)  # nll = -log_p[target]
    return dlogits * (weight * dloss).astype(log_p.dtype)


def distillation(logits, teacher_logits, targets):  # [..., V], [..., V], [...] -> scalar
    """Mean of KL(teacher || student) in nats over the targets that are not -1."""
    if np.shape(teacher_logits) != logits.shape:
        raise ValueError(f"teacher_logits {list(np.shape(teacher_logits))} must be as logits {list(logits.shape)}")
    counted = targets != -1
    n = max(counted.sum(), 1)
    log_q, log_p = log_softmax(logits), log_softmax(teacher_logits)
    p = np.exp(log_p)
    kl = np.einsum("...v,...v->...", p, log_p - log_q)
    return kl[counted].sum() / n, (log_q, p, counted[..., None] / n)


def distillation_backward(dloss, saved):  # scalar -> [..., V]
    log_q, p, weight = saved
    return (np.exp(log_q) - p) * (weight * dloss).astype(log_q.dtype)  # kl = constant - sum p * log_q
