"""alpha_sigmoid against mpmath, and the properties that the rest relies on."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from tolerances import SIGMOID, SIGMOID_SLOPE

from dcp_ref import alpha_sigmoid
from dcp_ref.sigmoid import log_derivative

ALPHAS = [1, 1 + 1e-6, 1.1, 1.5, 2, 3, 4, 8, 16, 64, math.inf]
BETWEEN = [1 + 1e-15, 1.9, 1.99999, 2.00001, 2.1, 130, 1e4, 1e12]  # where a solver would change its branch


def oracle(s, alpha):
    """p for s <= 0 by 80 bisections in 40 digits."""
    with mpmath.workdps(40):
        s, n = mpmath.mpf(float(s)), mpmath.mpf(alpha) - 1
        if n == 0:
            return 1 / (1 + mpmath.exp(-s))
        if s * n <= -1 or alpha == math.inf:
            return mpmath.mpf(0)
        low, high = mpmath.mpf(0), mpmath.mpf(1) / 2
        for _ in range(80):
            p = (low + high) / 2
            low, high = (p, high) if p**n - (1 - p) ** n < n * s else (low, p)
        return low


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("alpha", ALPHAS + BETWEEN)
def test_equals_mpmath(alpha, dtype):
    """All over the support, near its edge, near 0 and beyond; both signs against the one oracle."""
    edge = 40.0 if alpha == 1 else min(40.0, 1 / (alpha - 1)) if alpha < math.inf else 1.0
    near = 10.0 ** -np.arange(1, 17, 3)
    s = (-np.concatenate([np.linspace(0.05, 1.1, 10), near, 1 - near, 1 + near]) * edge).astype(dtype)
    expected = [oracle(x, alpha) for x in s]
    low, high = alpha_sigmoid(s, alpha), alpha_sigmoid(-s, alpha)
    assert low.dtype == high.dtype == dtype
    with mpmath.workdps(40):
        for p, q, e in zip(low, high, expected, strict=True):
            assert abs(mpmath.mpf(float(p)) - e) <= SIGMOID[dtype]
            assert abs(mpmath.mpf(float(q)) - (1 - e)) <= SIGMOID[dtype]


@given(
    npst.arrays(st.sampled_from([np.float32, np.float64]), npst.array_shapes(max_dims=3),
                elements=st.floats(-50, 50, width=32)),
    st.one_of(st.sampled_from(ALPHAS), st.floats(1, 100)),
)
def test_properties(s, alpha):
    p = alpha_sigmoid(s, alpha)
    assert p.shape == s.shape and p.dtype == s.dtype
    assert ((p >= 0) & (p <= 1)).all()
    mirrored = alpha_sigmoid(-s, alpha)
    tie = (s == 0) & (alpha == math.inf)
    assert np.abs(p + mirrored - 1)[~tie].max(initial=0) <= np.finfo(s.dtype).eps
    assert (p[tie] == 0).all()
    if alpha > 1:
        outside = np.abs(s).astype(np.float64) >= (1 + 1e-12) / (alpha - 1)
        np.testing.assert_array_equal(p[outside], s[outside] > 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("alpha", [*ALPHAS, *BETWEEN, 1e300])
def test_never_decreases(alpha, dtype):
    """At 200,000 random scores, most float32 ones next to each other."""
    scale = 10 if alpha == 1 else min(10, 1 / (alpha - 1)) if alpha < math.inf else 1
    s = np.sort(np.random.default_rng(0).normal(size=200_000) * scale / 2).astype(dtype)
    assert (np.diff(alpha_sigmoid(s, alpha)) >= 0).all()


@pytest.mark.parametrize("alpha", [a for a in ALPHAS if 1 < a < math.inf])
def test_exactly_saturated_from_the_edge_on(alpha):
    edge = 1 / (alpha - 1)
    for dtype in (np.float32, np.float64):
        s = np.array([edge, edge * 1.001, 1e30], dtype)
        s = s[s.astype(np.float64) >= edge]  # float32 may have rounded the edge itself inwards
        assert alpha_sigmoid(s, alpha).tolist() == [1] * len(s)
        assert alpha_sigmoid(-s, alpha).tolist() == [0] * len(s)


def test_the_step_drops_ties_and_nan():
    assert alpha_sigmoid(np.array([-1, -0.0, 0.0, 1e-300, np.nan, np.inf, -np.inf]), math.inf).tolist() == [
        0, 0, 0, 1, 0, 1, 0]


@pytest.mark.parametrize("alpha", [1, 1.5, 2, 4])
def test_nan_shows_while_training(alpha):
    assert np.isnan(alpha_sigmoid(np.array([np.nan]), alpha)).all()


def test_any_float_array():
    assert alpha_sigmoid(0.0, 1.5) == 0.5 and alpha_sigmoid(0.0, 1.5).shape == ()
    assert alpha_sigmoid([], 3).shape == (0,)
    assert alpha_sigmoid(np.array([1, 0, -1]), 2).tolist() == [1, 0.5, 0]
    half = alpha_sigmoid(np.array([0.25, -3], np.float16), 2)
    assert half.dtype == np.float16 and half.tolist() == [0.625, 0]
    strided = np.arange(-6, 6, dtype=np.float64).reshape(3, 4)[:, ::2]
    np.testing.assert_array_equal(alpha_sigmoid(strided, 1.5), alpha_sigmoid(strided.copy(), 1.5))


@pytest.mark.parametrize("scalar", [np.float16, np.float32, np.int64])
def test_alpha_may_be_a_numpy_scalar(scalar):
    s = np.linspace(-1, 1, 9)
    np.testing.assert_array_equal(alpha_sigmoid(s, scalar(3)), alpha_sigmoid(s, 3.0))


@pytest.mark.parametrize("alpha", [0.999, -1, math.nan])
def test_bad_alpha(alpha):
    with pytest.raises(ValueError, match="alpha"):
        alpha_sigmoid(np.zeros(1), alpha)


@given(st.floats(-0.999, 0.999), st.floats(1, 20))
def test_slope_by_difference(place, alpha):
    s = np.array([place * min(8.0, 1 / (alpha - 1) if alpha > 1 else 8.0)])
    p, h = alpha_sigmoid(s, alpha), 1e-5 * (1 - abs(place)) * min(1, 1 / alpha)
    log = [np.log(alpha_sigmoid(s + k * h, alpha)) for k in (-2, -1, 1, 2)]
    difference = (log[0] - 8 * log[1] + 8 * log[2] - log[3]) / (12 * h)
    if abs(place) > 1e-3:  # at 0 and a large alpha the slope changes faster than any step
        np.testing.assert_allclose(log_derivative(p, alpha), difference, rtol=SIGMOID_SLOPE)


def test_no_slope_where_saturated():
    p = np.array([0.0, 1.0])
    for alpha in (1.0, 1.5, 2.0, 8.0, math.inf):
        assert log_derivative(p, alpha).tolist() == [0, 0]
