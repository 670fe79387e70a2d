"""Numbers in fewer bits: error bounds, ties, the ends of the range, and the formulas once more, number by number."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dcp_ref.native.memory import Memory
from dcp_ref.runtime.precision import STORAGES, check_storage, dequantized, quantized, stored

F = np.float32
SMALLEST = 2.0**-149
FLOATS = st.floats(-(2.0**120), 2.0**120, width=32)
HEADS = arrays.arrays(F, (3, 8), elements=FLOATS)  # [N, C] of 2 heads


def int8_by_hand(group):
    """One group, one number at a time, each step rounded to float32."""
    m = F(0)
    for x in group:
        m = max(m, abs(x))
    inverse = F(127) / m if m >= 2.0**-120 else F(0)
    n = [min(max(int(np.rint(F(x * inverse))), -127), 127) for x in group]
    return n, F(m / F(127))


@given(HEADS)
def test_float32_is_as_it_was(x):
    np.testing.assert_array_equal(stored(x, "float32", 2), x)


@given(HEADS)
def test_float16_rounds_to_the_nearest_and_saturates(x):
    got = stored(x, "float16", 2)
    assert got.dtype == F and np.abs(got).max() <= 65504
    np.testing.assert_array_equal(np.abs(got[np.abs(x) >= 65504]), 65504)
    inside = np.abs(x) < 65504
    normal = inside & (np.abs(x) >= 2.0**-14)
    assert (np.abs(got - x)[normal] <= np.abs(x[normal]) * 2.0**-11).all()
    assert (np.abs(got - x)[inside] <= np.maximum(np.abs(x[inside]) * 2.0**-11, 2.0**-25)).all()
    np.testing.assert_array_equal(stored(got, "float16", 2), got)


@pytest.mark.parametrize(("x", "expected"), [
    (1 + 2.0**-11, 1), (1 + 3 * 2.0**-11, 1 + 2.0**-9), (1 + 2.0**-11 + 2.0**-23, 1 + 2.0**-10),  # ties to even
    (2.0**-25, 0), (3 * 2.0**-25, 2.0**-23), (2.0**-24, 2.0**-24), (SMALLEST, 0), (0, 0),  # subnormals of float16
    (65504, 65504), (65519, 65504), (65520, 65504), (1e38, 65504), (np.inf, 65504),
])
def test_float16_number_by_number(x, expected):
    for sign in (1, -1):
        got = stored(np.full((1, 2), sign * x, F), "float16", 1)
        np.testing.assert_array_equal(got, np.full((1, 2), sign * expected, F))


def test_float16_has_no_nan():
    nan = np.array([[np.nan, -np.nan]], F)
    np.testing.assert_array_equal(stored(nan, "float16", 1), np.copysign(F(65504), nan))


@given(HEADS)
def test_int8_is_the_formula_for_each_token_and_head(x):
    got = stored(x, "int8", 2)
    assert got.dtype == F
    for token, row in zip(x, got, strict=True):
        for head in (slice(0, 4), slice(4, 8)):
            n, scale = int8_by_hand(token[head])
            np.testing.assert_array_equal(row[head], [F(one) * scale for one in n])
            m = float(np.abs(token[head]).max())
            bound = m / 254 * (1 + 1e-5) if m >= 2.0**-120 else m  # half a step, or the rounding of a tie's
            assert np.abs(row[head].astype(float) - token[head]).max() <= bound


def test_int8_ties_go_to_even():
    x = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5, 0]], F)
    assert stored(x, "int8", 1).tolist() == [[127, 0, 2, 2, 0, -2, -126, 0]]


def test_int8_heads_and_tokens_do_not_share_a_scale():
    x = np.array([[1000, 500, 1, 0.5], [10, 5, 0, 0]], F)
    np.testing.assert_allclose(stored(x, "int8", 2), x, rtol=0.01)


@pytest.mark.parametrize("m", [0.0, SMALLEST, 2.0**-126, 2.0**-121, 2.0**-120 * (1 - 2.0**-24)])
def test_int8_groups_too_small_to_invert_are_zeros(m):
    assert stored(np.array([[m, -m, m / 2, 0]], F), "int8", 1).tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("m", [2.0**-120, 1e-30, 1.0, 1e30, 2.0**127])
def test_int8_reads_the_largest_back_at_every_size(m):
    np.testing.assert_allclose(stored(np.array([[m, -m, 0]], F), "int8", 1), np.array([[m, -m, 0]], F), rtol=2e-7)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_int8_of_what_is_not_finite_is_nan_in_that_head_alone(bad):
    got = stored(np.array([[bad, 1, 2, 1]], F), "int8", 2)
    assert np.isnan(got[0, :2]).all() and got[0, 2] == 2


@pytest.mark.parametrize("kv", STORAGES)
def test_no_tokens(kv):
    assert stored(np.zeros((0, 4), F), kv, 2).shape == (0, 4)


@given(arrays.arrays(F, (4, 3), elements=FLOATS))
def test_weights_have_a_scale_for_each_column(w):
    n, scale = quantized(w, "int8")
    assert n.dtype == np.int8 and scale.dtype == F and scale.shape == (3,)
    for column in range(3):
        expected, s = int8_by_hand(w[:, column])
        assert n[:, column].tolist() == expected and scale[column] == s
    np.testing.assert_array_equal(dequantized(n, scale), stored(np.ascontiguousarray(w.T), "int8", 1).T)


@given(arrays.arrays(F, (4, 3), elements=st.floats(-65504, 65504, width=32)))
def test_weights_in_float16_and_float32(w):
    half, no_scale = quantized(w, "float16")
    assert half.dtype == np.float16 and no_scale is None
    np.testing.assert_array_equal(dequantized(half, None), stored(w, "float16", 1))
    same, no_scale = quantized(w, "float32")
    assert same.dtype == F and no_scale is None
    np.testing.assert_array_equal(dequantized(same, None), w)


@pytest.mark.parametrize("beyond", [65505, -1e5, np.inf, np.nan])
def test_weights_beyond_float16_are_refused(beyond):
    w = np.array([[1, beyond]], F)
    with pytest.raises(ValueError, match=r"float16 holds numbers up to 65504, and there is .*: store it as"):
        quantized(w, "float16")
    np.testing.assert_array_equal(quantized(w, "float32")[0], w)


def test_storages_have_names():
    assert [check_storage("kv", name) for name in STORAGES] == ["float32", "float16", "int8"]
    for wrong in ("int4", None, np.float16):
        with pytest.raises(ValueError, match="kv must be one of float32, float16, int8, not"):
            check_storage("kv", wrong)
        with pytest.raises(ValueError, match="storage must be one of"):
            quantized(np.ones((2, 2), F), wrong)


@given(st.lists(st.tuples(arrays.array_shapes(max_side=9), st.sampled_from(STORAGES)), max_size=12))
def test_arrays_in_a_memory_have_memory_of_their_own(wanted):
    memory = Memory(1024)
    made = [memory.array(shape, dtype) for shape, dtype in wanted]
    for i, array in enumerate(made):
        array[...] = i
    for i, (array, (shape, dtype)) in enumerate(zip(made, wanted, strict=True)):
        assert array.shape == shape and array.dtype == dtype and array.ctypes.data % 64 == 0
        np.testing.assert_array_equal(array, i)


def test_arrays_in_a_memory_stand_side_by_side():
    memory = Memory(4096)
    first, second, large, third = (memory.array((n,), "int8") for n in (100, 3800, 5000, 64))
    assert second.ctypes.data - first.ctypes.data == 128
    assert large.base is not second.base and third.base is not second.base
