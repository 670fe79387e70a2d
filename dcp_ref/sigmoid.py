"""The alpha-sparse sigmoid: a soft gate that training sharpens until it is a step (the paper's "Sparse Sigmoid")."""

import math

import numpy as np


def alpha_sigmoid(s, alpha: float) -> np.ndarray:  # any shape -> the same shape
    """The p in [0, 1] that maximises p s + H(p), with H the Tsallis alpha-entropy of (p, 1-p).

    alpha = 1 is the logistic function, alpha = 2 is clip((s+1)/2, 0, 1), alpha = inf is the step: 1 if s > 0, else 0
    (a tie and NaN are 0). In between, p solves

        p^(alpha-1) - (1-p)^(alpha-1) = (alpha-1) s        and is exactly 0 or 1 where |s| >= 1 / (alpha-1).

    The result has the dtype of s; integers count as float64. Raises ValueError when alpha is not in [1, inf].
    """
    alpha = float(alpha)  # a NumPy scalar would impose its own precision
    if not alpha >= 1:
        raise ValueError(f"alpha must be in [1, inf], not {alpha!r}")
    s = np.asarray(s)
    if s.dtype not in (np.float32, np.float64):
        p = alpha_sigmoid(s.astype(np.float32 if s.dtype == np.float16 else np.float64), alpha)
        return p.astype(s.dtype) if s.dtype.kind == "f" else p
    if alpha == math.inf:
        return (s > 0).astype(s.dtype)
    size = np.abs(s)
    edge = np.float64(1 / (alpha - 1) if alpha > 1 else math.inf)  # not a Python float: it would round to s's dtype
    smaller = np.where(s == 0, s.dtype.type(0.5), 0)  # min(p, 1-p) keeps its digits where p itself would round to 1
    inside = (s != 0) & ~(size >= edge)  # NaN is inside, and so stays NaN
    smaller[inside] = _smaller_side(size[inside], alpha - 1)
    return np.where(s > 0, 1 - smaller, smaller)


def log_derivative(p: np.ndarray, alpha: float) -> np.ndarray:  # p = alpha_sigmoid(s, alpha) -> d log p / ds
    """1 / (p^(alpha-1) + p (1-p)^(alpha-2)), and 0 where p is saturated. Times p, it is dp/ds."""
    inside = (p > 0) & (p < 1)
    q = np.where(inside, p, 0.5)  # any number in (0, 1): no division by zero where the result is 0 anyway
    slope = 1 / (q ** (alpha - 1) + q * (1 - q) ** (alpha - 2)) if alpha < math.inf else q
    return np.where(inside, slope, 0).astype(p.dtype, copy=False)


def _smaller_side(size, n):  # |s| inside the support, n = alpha - 1 -> p <= 1/2
    """Solve (1-p)^n - p^n = c = n |s| by Newton's method, on an unknown x in which it is well conditioned.

    Solving for one of the two powers gives a fixed point x = f(x) with f' in [-1, 0], so x - f(x) = 0 has a slope
    between 1 and 2, and four steps reach rounding for every n. The last step is in float64 whatever the dtype:
    float32 results are then correctly rounded, so that they never decrease where s grows.
    """
    if n == 0:
        return _odds_to_p(-size.astype(np.float64))
    start, step, to_p = (_start_odds, _step_odds, _odds_to_p) if n < 1 else (_start_power, _step_power, np.asarray)
    c = _below_one(np.float64(n) * size)
    n = min(n, 1e30)  # from here on p is 0 to rounding, and n would overflow float32
    c_rough = _below_one(c.astype(size.dtype))
    x = start(c_rough, n)
    for _ in range(3):
        x = step(x, c_rough, n)
    return to_p(step(x.astype(np.float64), c, n))


def _below_one(c):  # rounding must not carry a score over the edge of the support
    return np.minimum(c, np.nextafter(c.dtype.type(1), c.dtype.type(0)))


# n >= 1: x = p, and (1-p)^n = c + p^n gives p = 1 - (c + p^n)^(1/n).


def _start_power(c, n):
    return np.minimum(1 - c ** (1 / n), 0.5)


def _step_power(p, c, n):
    floor = (2 * np.finfo(p.dtype).tiny) ** (1 / n)  # below it p^n is subnormal: slow, and too small to matter
    base = np.where(p > floor, p, 0)
    p_n = base**n
    q = (c + p_n) ** (1 / n)
    slope = 1 + np.divide(p_n * q, (c + p_n) * base, out=base, where=base > 0)  # 1 + (p/q)^(n-1)
    return np.maximum(p - (p - (1 - q)) / slope, 0)


# n < 1: x = log(p / (1-p)), and p^n = (1-p)^n - c gives x = log(1 - c / (1-p)^n) / n: small p keep their digits.


def _start_odds(c, n):
    return np.log((1 - c) / (1 + (2**n - 1) * c)) / n  # exact for n = 1, and to first order in c for every n


def _step_odds(x, c, n):
    p = _odds_to_p(x)
    ratio = _below_one(c * np.exp(n * np.log1p(np.exp(x))))  # c / (1-p)^n
    return x - (x - np.log1p(-ratio) / n) / (1 + p * ratio / (1 - ratio))


def _odds_to_p(x):
    return np.exp(x) / (1 + np.exp(x))
