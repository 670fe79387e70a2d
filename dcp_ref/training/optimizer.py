"""AdamW (Loshchilov and Hutter, 2019) and gradient clipping, in place on flat dicts of arrays."""

import math

import numpy as np

BETA1, BETA2, EPSILON = 0.9, 0.95, 1e-8

Params = dict[str, np.ndarray]


def global_norm(grads: Params) -> float:
    """The Euclidean norm of all gradients together, summed in float64."""
    return math.sqrt(sum(float(np.sum(np.square(g, dtype=np.float64))) for g in grads.values()))


def clip(grads: Params, norm: float, limit: float) -> None:
    """Scale `grads`, whose norm is `norm`, in place to a norm of at most `limit`."""
    if norm > limit:
        for g in grads.values():
            np.multiply(g, limit / norm, out=g)


def adamw(params: Params, grads: Params, m: Params, v: Params, *, step: int, rate: float, decay: float) -> None:
    """AdamW's step number `step` (from 0), which changes `params`, `m` and `v` in place.

        m = BETA1 m + (1 - BETA1) g           v = BETA2 v + (1 - BETA2) g^2
        p = p - rate (m_hat / (sqrt(v_hat) + EPSILON) + decay p)

    with m_hat = m / (1 - BETA1^(step+1)) and v_hat likewise. Only matrices decay: no bias, no layer norm, no beta.
    Parameters without a gradient do not change.
    """
    m_scale, v_scale = 1 / (1 - BETA1 ** (step + 1)), 1 / (1 - BETA2 ** (step + 1))
    for name, g in grads.items():
        p = params[name]
        m[name] += (1 - BETA1) * (g - m[name])
        v[name] += (1 - BETA2) * (g * g - v[name])
        update = m_scale * m[name] / (np.sqrt(v_scale * v[name]) + EPSILON)
        if p.ndim >= 2:
            update += decay * p
        np.subtract(p, rate * update, out=p)
