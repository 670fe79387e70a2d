"""Each kernel in C beside its twin of the same name in NumPy. That results are bitwise the same: test_invariance.py."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from thread_tools import omp_threads
from tolerances import CACHE_ATTENTION, GELU_FAR, KERNEL, KERNEL_SUM

from dcp_ref import native
from dcp_ref.config import ACTIVATIONS, Config
from dcp_ref.native.cache import NativeCache
from dcp_ref.runtime import kernels
from dcp_ref.runtime.cache import KVCache
from dcp_ref.runtime.precision import COLUMNS, STORAGES

if not native.available():
    pytest.skip("the C extension is not built", allow_module_level=True)

from dcp_ref.native import kernels as native_kernels

SEEDS, STORAGE = st.integers(0, 2**32 - 1), st.sampled_from(STORAGES)
ROWS, WIDTH = st.integers(0, 40), st.integers(1, 100)
F = np.float32


def both(name, *arguments, **options):
    """The results of C and of NumPy."""
    got, expected = (getattr(module, name)(*arguments, **options) for module in (native_kernels, kernels))
    assert got.dtype == F and got.shape == expected.shape and got.flags.c_contiguous
    return got, expected


def random(rng, *shape):
    return rng.normal(size=shape).astype(F)


def packed(w, bias, storage):
    return [module.pack(w, bias, storage) for module in (native_kernels, kernels)]


@given(SEEDS, ROWS, WIDTH, WIDTH, STORAGE, st.booleans(), st.booleans(), st.integers(0, 4))
def test_linear(seed, rows, n_in, n_out, storage, biased, added, threads):
    rng = np.random.default_rng(seed)
    x, w = random(rng, rows, n_in), random(rng, n_in, n_out)
    c, plain = packed(w, random(rng, n_out) if biased else None, storage)
    add = random(rng, rows, n_out) if added else None
    before = None if add is None else add.copy()
    got = native_kernels.linear(x, c, add, threads)
    assert got.dtype == F and got.shape == (rows, n_out)
    np.testing.assert_allclose(got, kernels.linear(x, plain, add), **KERNEL_SUM)
    np.testing.assert_array_equal(add, before)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("n_out", [COLUMNS - 1, COLUMNS, COLUMNS + 1, 2 * COLUMNS + 33])
@pytest.mark.parametrize("order", ["C", "F"])
def test_matrices_that_are_packed_some_columns_at_a_time(storage, n_out, order):
    rng = np.random.default_rng(0)
    w = np.asarray(random(rng, 7, n_out), order=order)  # the head is the transposed embedding
    x = np.eye(7, dtype=F)  # so that every number of w comes out
    c, plain = packed(w, None, storage)
    np.testing.assert_array_equal(native_kernels.linear(x, c), kernels.linear(x, plain))
    ids, wpe = rng.integers(0, n_out, 50), np.zeros((1, 7), F)
    at = np.zeros(50, int)
    np.testing.assert_array_equal(native_kernels.embedding(ids, at, c, wpe), kernels.embedding(ids, at, plain, wpe))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("storage", STORAGES)
def test_weights_of_any_float_type_are_packed(dtype, storage):
    rng = np.random.default_rng(0)
    w, bias = random(rng, 5, 40).astype(dtype), random(rng, 40).astype(dtype)
    c, plain = packed(w, bias, storage)
    x = random(rng, 3, 5)
    np.testing.assert_allclose(native_kernels.linear(x, c), kernels.linear(x, plain), **KERNEL_SUM)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_panel_of_every_number_that_the_storage_has(storage):
    """Subnormals, both zeros, the largest: C decodes them itself."""
    w = {"float16": np.arange(65536, dtype=np.uint16).view(np.float16), "int8": np.arange(-127, 128, dtype=np.int8),
         "float32": np.array([0, -0.0, 2**-149, -(2**-126), 1, 3.4e38], F)}[storage]
    w = w[np.isfinite(w)].astype(F)[:, None]
    c, plain = packed(w if storage == "int8" else w.T, None, storage)
    x = np.eye(len(w), dtype=F) if storage == "int8" else np.ones((1, 1), F)
    np.testing.assert_array_equal(native_kernels.linear(x, c), kernels.linear(x, plain))


def test_the_largest_halves_and_no_larger():
    w = np.array([[65504, 65505]], F)
    for module in (native_kernels, kernels):
        module.pack(w[:, :1], None, "float16")
        for bad in (w, w * np.nan, w * np.inf):
            with pytest.raises(ValueError, match="float16 holds numbers up to 65504"):
                module.pack(bad, None, "float16")
        with pytest.raises(ValueError, match="storage must be one of"):
            module.pack(w, None, "int4")


@given(SEEDS, ROWS, WIDTH, st.floats(1e-8, 1), st.floats(-100, 100), st.integers(0, 4))
def test_layer_norm(seed, rows, n, epsilon, mean, threads):
    rng = np.random.default_rng(seed)
    x = random(rng, rows, n) + F(mean) * (n > 1)  # one number is its own mean, and only rounding would be seen
    got, expected = both("layer_norm", x, random(rng, n), random(rng, n), epsilon, threads)
    # The mean is good to about 1e-6 of itself, and what is left is divided by the deviation, at least sqrt(epsilon).
    margin = 4e-6 * (1 + abs(mean)) / np.sqrt(np.minimum(1, x.var(-1, keepdims=True) + epsilon))
    assert (np.abs(got - expected) <= margin * 10 * (1 + np.abs(expected))).all()


@given(SEEDS, ROWS, st.integers(1, 300), st.sampled_from(ACTIVATIONS), st.sampled_from([0.1, 1, 10, 100]),
       st.integers(0, 4))
def test_activation(seed, rows, n, kind, size, threads):
    got, expected = both("activation", random(np.random.default_rng(seed), rows, n) * F(size), kind, threads)
    np.testing.assert_allclose(got, expected, **KERNEL)


@pytest.mark.parametrize("n", [4095, 4096, 4097, 12_289])
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations_divided_among_threads(kind, n):
    x = random(np.random.default_rng(0), 1, n)
    with omp_threads(4):
        got, expected = both("activation", x, kind)
    np.testing.assert_allclose(got, expected, **KERNEL)
    np.testing.assert_array_equal(got, native_kernels.activation(x, kind, 1))


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations_far_out(kind):
    x = np.array([[-1e30, -1e4, -200, -88.5, -87, -20, -1e-30, -0.0, 0, 1e-30, 20, 88, 1e4, 1e30, np.inf]], F)
    with np.errstate(over="ignore", invalid="ignore"):
        got, expected = both("activation", x, kind)
    np.testing.assert_allclose(got, expected, rtol=KERNEL["rtol"], atol=GELU_FAR)
    assert np.isnan(native_kernels.activation(np.full((1, 70), np.nan, F), "gelu_new")).all()
    for bad in (-np.inf, np.nan):
        native_kernels.activation(np.full((1, 70), bad, F), kind)


@given(SEEDS, ROWS, WIDTH, WIDTH, STORAGE)
def test_embedding(seed, rows, n_in, n_out, storage):
    rng = np.random.default_rng(seed)
    c, plain = packed(random(rng, n_in, n_out), None, storage)
    wpe, ids, at = random(rng, 9, n_in), rng.integers(0, n_out, rows), rng.integers(0, 9, rows)
    got = native_kernels.embedding(ids, at, c, wpe)
    np.testing.assert_allclose(got, kernels.embedding(ids, at, plain, wpe), **KERNEL)  # a product and a sum fused


@pytest.mark.parametrize("rows", [0, 1, 2, 13])
@pytest.mark.parametrize("width", [1023, 1024, 2048])
def test_rows_of_a_multiple_of_4096_bytes_stand_further_apart(rows, width):
    """Arrays of the caller's, with their rows side by side, will do; so will what a kernel returned, without a copy."""
    rng = np.random.default_rng(0)
    x, g, b = random(rng, rows, width), random(rng, width), random(rng, width)
    wide, narrow = (packed(random(rng, *shape) / F(30), None, "float32") for shape in ((width, width), (5, width)))
    ids, wpe = rng.integers(0, width, rows), random(rng, 1, 5)
    far = native_kernels.rows(rows, width)
    far[:] = x
    assert rows < 2 or far.strides[0] == 4 * width + 64 * (width % 1024 == 0)
    for a in (x, far):
        for name, arguments in (("layer_norm", (g, b, 1e-5)), ("activation", ("gelu_new",))):
            got, expected = (getattr(module, name)(a, *arguments) for module in (native_kernels, kernels))
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
        got, expected = (m.linear(a, w, a) for m, w in zip((native_kernels, kernels), wide, strict=True))
        np.testing.assert_allclose(got, expected, **KERNEL_SUM)
        assert rows < 2 or got.strides == far.strides
    got, expected = (m.embedding(ids, 0 * ids, w, wpe) for m, w in zip((native_kernels, kernels), narrow, strict=True))
    np.testing.assert_allclose(got, expected, **KERNEL)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("storage", STORAGES)
def test_what_is_not_finite_stays_in_its_row(storage, bad):
    rng = np.random.default_rng(0)
    x, c = random(rng, 13, 40), native_kernels.pack(random(rng, 40, 33), None, storage)
    expected = native_kernels.linear(x, c)
    x[5, 7] = bad
    got = native_kernels.linear(x, c)
    np.testing.assert_array_equal(np.delete(got, 5, 0), np.delete(expected, 5, 0))
    assert not np.isfinite(got[5]).any()
    normed = native_kernels.layer_norm(x, np.ones(40, F), np.zeros(40, F), 1e-5)
    assert np.isfinite(np.delete(normed, 5, 0)).all() and not np.isfinite(normed[5]).all()


W = native_kernels.pack(np.ones((3, 4), F), np.ones(4, F))
GOOD = np.ones((2, 3), F)
WRONG = [GOOD.astype(float), GOOD.astype(">f4"), GOOD[:, :2], np.ones((2, 6), F)[:, ::2], np.ones((3, 2), F).T,
         np.ones((2, 3, 1), F), np.frombuffer(bytes(25), F, 6, offset=1).reshape(2, 3)]


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize(("name", "call"), [
    ("x", lambda x: native_kernels.linear(x, W)),
    ("add", lambda x: native_kernels.linear(GOOD, native_kernels.pack(np.ones((3, 3), F)), x)),
    ("g", lambda x: native_kernels.layer_norm(GOOD, x, np.ones(3, F), 1e-5)),
    ("b", lambda x: native_kernels.layer_norm(GOOD, np.ones(3, F), x, 1e-5)),
    ("wpe", lambda x: native_kernels.embedding([0], [0], W, x)),
])
def test_a_wrong_array_is_named(name, call, wrong):
    with pytest.raises(ValueError, match=rf"^{name} must be contiguous float32"):
        call(wrong)


@pytest.mark.parametrize("wrong", [WRONG[0], WRONG[1], WRONG[3], WRONG[4], WRONG[6]])
def test_a_wrong_array_of_any_width_is_named(wrong):
    for call in (lambda x: native_kernels.layer_norm(x, *np.ones((2, x.shape[1]), F), 1e-5),
                 lambda x: native_kernels.activation(x, "relu")):
        with pytest.raises(ValueError, match="x must be contiguous float32"):
            call(wrong)


def test_tokens_and_positions_that_are_not_there():
    wpe = np.ones((5, 3), F)
    for ids, at, name in (([4], [0], "ids"), ([-1], [0], "ids"), ([0], [5], "positions"), ([0], [-1], "positions"),
                          ([0, 1], [0], "positions"), ([[0]], [[0]], "ids")):
        with pytest.raises(ValueError, match=f"^{name} must be integers"):
            native_kernels.embedding(ids, at, W, wpe)
    assert native_kernels.embedding([], [], W, wpe).shape == (0, 3)


@pytest.mark.parametrize("bias", [np.ones(3, F), np.ones(5, F), np.ones((4, 1), F), np.float32(1)])
def test_a_bias_of_another_shape_is_refused(bias):
    """C would read beyond it."""
    with pytest.raises(ValueError, match=r"bias must have shape \(4,\)"):
        native_kernels.pack(np.ones((3, 4), F), bias)


@pytest.mark.parametrize("shape", [(), (4,), (3, 4, 1)])
def test_a_matrix_has_two_axes(shape):
    with pytest.raises(ValueError, match="w must be a matrix"):
        native_kernels.pack(np.ones(shape, F))


@pytest.mark.parametrize("kv", STORAGES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e34, -1e34, 1e-40])
@pytest.mark.parametrize("where", ["q", "q_int"])
def test_extreme_queries_stay_in_their_row(where, bad, kv):
    """Logits of attention and scores of every size, and none: what KVCache gives, and the other rows as ever."""
    config = Config(vocab_size=1, n_positions=64, n_embd=40, n_layer=1, n_head=2, int_n_embd=16)
    rng = np.random.default_rng(0)
    arrays = {name: random(rng, 50, 40 if name in "qkv" else 16) for name in ("q", "k", "v", "q_int", "k_int")}
    arrays[where][49] *= F(bad) if np.isfinite(bad) else 1
    if not np.isfinite(bad):
        arrays[where][49, 3] = bad
    results = []
    with np.errstate(all="ignore"):
        for cache in (NativeCache(config, kv=kv), KVCache(config, kv=kv)):
            sequence = cache.new_sequence()
            batch = cache.reserve([sequence], [50])
            results.append(cache.step(0, batch, **arrays, beta=1.5))
    (got, dropped), (expected, expected_dropped) = results
    np.testing.assert_array_equal(dropped, expected_dropped)
    np.testing.assert_allclose(got[:49], expected[:49], **CACHE_ATTENTION)
    assert np.isfinite(got[:49]).all()
    if where == "q_int" or abs(bad) < 1 or np.isfinite(bad):
        np.testing.assert_allclose(got[49], expected[49], **CACHE_ATTENTION)


@pytest.mark.parametrize("size", [20, 80, 86.9, 88, 1000, 3e37])
@pytest.mark.parametrize("n", [1, 31, 32, 33, 64])
def test_attention_logits_far_apart(n, size):
    """e^x of differences up to the largest float: what is far below the largest gets weight 0, and no more."""
    config = Config(vocab_size=1, n_positions=64, n_embd=1, n_layer=1, n_head=1)
    k = np.linspace(-1, 1, n, dtype=F)[:, None] * F(size)
    v = np.arange(1, n + 1, dtype=F)[:, None]
    cache = NativeCache(config)
    sequence = cache.new_sequence()
    batch = cache.reserve([sequence], [n])
    out, _ = cache.step(0, batch, np.ones((n, 1), F), k, v)
    for i in range(n):
        a = (k[: i + 1, 0] - k[: i + 1, 0].max()).astype(float)
        weights = np.exp(a)
        np.testing.assert_allclose(out[i, 0], weights @ v[: i + 1, 0] / weights.sum(), rtol=2e-6)
