"""Levels 0 and 1: an author's alpha-sigmoid, and a mask made from scores."""

from collections import Counter
from typing import Any

import numpy as np

from dcp_ref.sigmoid import alpha_sigmoid
from dcp_ref.testing.running import as_numpy

ALPHAS = (1.0, 1.25, 1.5, 2.0, 3.0, 8.0, np.inf)


def check_alpha_sigmoid(cls: Any, examples: int, seed: int, dtype: str) -> tuple[str, Counter]:
    """What is wrong with cls.alpha_sigmoid(s, alpha), "" where nothing is; and counts."""
    rng, eps = np.random.default_rng(seed), np.finfo(dtype).eps
    for alpha in ALPHAS:
        edges = [0.0, -0.0, np.inf, -np.inf, *([1 / (alpha - 1), -1 / (alpha - 1)] if 1 < alpha < np.inf else [])]
        s = np.concatenate([rng.normal(size=examples) * 2, edges]).astype(dtype)
        want, got = alpha_sigmoid(s.astype(float), alpha), as_numpy(cls.alpha_sigmoid(s.copy(), alpha))
        if got.shape != s.shape:
            return f"alpha_sigmoid must return the shape of s, {list(s.shape)}, not {list(got.shape)}", Counter()
        error = np.abs(got.astype(float) - want)
        worst = int(np.argmax(np.where(np.isnan(error), np.inf, error)))
        most = 0.0 if alpha == np.inf else 64 * eps
        if not error[worst] <= most:
            return (f"alpha_sigmoid(s = {s[worst]:.9g}, alpha = {alpha:g}) is {want[worst]:.9g}, not {got[worst]:.9g}: "
                    f"off by {error[worst]:.3g}, and {most:.3g} is right"), Counter()
    gate = as_numpy(cls.alpha_sigmoid(np.array([np.nan], dtype), np.inf))[0]
    return "" if gate == 0 else f"alpha_sigmoid(NaN, inf) is 0: a NaN drops; not {gate}", Counter(
        examples=len(ALPHAS) * examples)


def check_mask(cls: Any, examples: int, seed: int) -> tuple[str, Counter]:
    """What is wrong with cls.mask(s, threshold, delay): bool [T, T], whether token j is live when i attends."""
    rng, counts = np.random.default_rng(seed), Counter[str]()
    for _ in range(examples):
        T, threshold, delay = int(rng.integers(1, 9)), float(rng.integers(-2, 3)), int(rng.integers(0, 4))
        s = rng.integers(-2, 4, (T, T)).astype(np.float32)
        s[rng.random((T, T)) < 0.05] = np.nan
        got = as_numpy(cls.mask(s.copy(), threshold, delay)).astype(bool)
        want = mask(s, threshold, delay)
        if got.shape != want.shape:
            return f"mask must be [T, T], {list(want.shape)}, not {list(got.shape)}", counts
        if (wrong := np.argwhere((got != want) & np.tri(T, dtype=bool))).size:
            i, j = map(int, wrong[0])
            return (f"i = {i}, j = {j} is {'live' if want[i, j] else 'gone'}, with int_delay {delay}, threshold "
                    f"{threshold:g} and scores s[{j}..{i}, {j}] = {s[j : i + 1, j].tolist()}"), counts
        counts += Counter(examples=1, drops=int((~want & np.tri(T, dtype=bool)).sum()))
    return "", counts


def mask(s: np.ndarray, threshold: float, delay: int) -> np.ndarray:  # [T, T] -> bool [T, T]
    """I of the hard rule: token j is live at i when no token from j + 1 to i has dropped it."""
    T = len(s)
    live = np.tri(T, dtype=bool)
    for i in range(T):
        for j in range(i):
            live[i, j] = live[i - 1, j] and (bool(s[i, j] > threshold) or i - j <= delay)
    return live
