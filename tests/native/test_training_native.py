"""The kernels of training in C beside their twins in NumPy."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from models import DELAYS, SMALL, random_params
from thread_tools import omp_threads
from tolerances import HF_FLOAT32, KERNEL, LOG_MASK, TRAINING_KERNELS

from dcp_ref import forward, interaction, loss_and_grads, policies
from dcp_ref import native as runtime_native
from dcp_ref.block import NUMPY
from dcp_ref.checkpoints import weights
from dcp_ref.config import Config

if not runtime_native.available():
    pytest.skip("the C extension is not built", allow_module_level=True)

from dcp_ref.native import training as native

C = native.kernels(threads=1)
SEEDS, THREADS = st.integers(0, 2**32 - 1), st.integers(0, 4)
ALPHAS = st.one_of(st.sampled_from([1.0, 1 + 1e-6, 1.5, 2.0, 2 + 1e-6, 3.0, 8.0, 64.0]), st.floats(1, 16))
F = np.float32


def dropped_for_good(rng, B, T, share):
    """A log mask [B, T, T] in which each token fades, and a share of them is gone after some steps."""
    age = np.arange(T)[:, None] - np.arange(T)
    life = np.where(rng.random((B, 1, T)) < share, rng.integers(0, T, (B, 1, T)), T)
    return np.where(age > np.maximum(life, 0), -np.inf, -0.1 * np.maximum(age, 0)).astype(F)


@given(SEEDS, st.integers(1, 3), st.integers(1, 3), st.integers(1, 100), st.integers(1, 40),
       st.sampled_from([0, 0.5, 1]), st.booleans())
@example(0, 1, 2, 70, 64, 0.9, True)
def test_attention(seed, B, H, T, D, share, one_array):
    """Of q, k and v as the model cuts them out of one array, and as arrays of their own."""
    rng = np.random.default_rng(seed)
    if one_array:
        qkv = rng.normal(size=(B, T, 3, H, D)).astype(F)
        q, k, v = (qkv[:, :, part].swapaxes(1, 2) for part in range(3))
    else:
        q, k, v = rng.normal(size=(3, B, H, T, D)).astype(F)
    log_i, dy = dropped_for_good(rng, B, T, share), rng.normal(size=(B, H, T, D)).astype(F)
    results = []
    for kernels in (C, NUMPY):
        y, saved = kernels.attention(q, k, v, log_i, D**-0.5)
        results.append([y, *kernels.attention_backward(dy, saved)])
    for got, expected in zip(*results, strict=True):
        assert got.dtype == F and got.shape == expected.shape
        np.testing.assert_allclose(got, expected, **TRAINING_KERNELS)
    assert not results[0][-1][log_i == -np.inf].any()  # what is dropped has no gradient


def test_attention_reads_a_mask_that_comes_back():
    """Any mask will do, not only those of tokens that are gone for good."""
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 2, 40, 8)).astype(F)
    log_i = np.where(rng.random((40, 40)) < 0.5, -np.inf, 0).astype(F)
    np.fill_diagonal(log_i, 0)
    got, expected = (kernels.attention(q, k, v, log_i, 1.0)[0] for kernels in (C, NUMPY))
    np.testing.assert_allclose(got, expected, **TRAINING_KERNELS)


@given(SEEDS, st.integers(1, 100), ALPHAS, st.sampled_from([0.1, 1, 10]), st.booleans(), DELAYS)
def test_log_mask(seed, T, alpha, spread, exact, delay):
    """Scores over the whole support and beyond; float32 throughout is as exact as scores that are off by a rounding."""
    rng = np.random.default_rng(seed)
    s = rng.normal(0.5, spread, (2, T, T)) / max(alpha - 1, 0.2)
    s = (np.round(4 * s) / 4 if exact else s).astype(F)  # exact: ties, 0, and the very edges of the support
    got, saved = C.log_mask(s, alpha, delay)
    nearby = [np.nextafter(s, F(end)).astype(np.float64) for end in (-np.inf, np.inf)]
    ends = [interaction.log_mask(scores, alpha, delay)[0] for scores in nearby]
    low, high = (np.where(np.isneginf(end), -np.inf, end * factor) for end, factor in zip(ends, LOG_MASK, strict=True))
    assert got.dtype == F and ((low - 1e-5 <= got) & (got <= high + 1e-5)).all()
    expected, expected_saved = NUMPY.log_mask(s, alpha, delay)
    dlog_i = np.where(np.isneginf(expected), 0, rng.normal(size=s.shape)).astype(F)
    ds, expected_ds = C.log_mask_backward(dlog_i, saved), NUMPY.log_mask_backward(dlog_i, expected_saved)
    steep = np.abs(expected_ds) > 100 * np.abs(dlog_i).max()  # next to the edge of the support a rounding of s is much
    alive = ~np.isneginf(expected) & ~np.isneginf(got) & ~steep
    np.testing.assert_allclose(ds[alive], expected_ds[alive], rtol=2e-2, atol=1e-3)


def test_a_score_that_is_no_number_stays_none():
    s = np.full((1, 3, 3), 0.1, F)
    s[0, 1, 0] = np.nan
    for alpha in (1.0, 1.5, 3.0):
        assert np.isnan(C.log_mask(s, alpha)[0][0, 1:, 0]).all()
    for delay in (0, 1):
        assert np.array_equal(C.log_mask(s, math.inf, delay)[0], NUMPY.log_mask(s, math.inf, delay)[0])


SPECIAL = st.sampled_from([-math.inf, math.inf, math.nan, 0.0, -0.0, 1e-45, -1e-45])


@given(SEEDS, st.integers(1, 140), st.one_of(ALPHAS, st.sampled_from([65.0, 1e3, 1e30, 1e300, math.inf])),
       st.lists(SPECIAL, min_size=1, max_size=3), DELAYS)
@example(0, 5, 1.0, [-math.inf], 0)
@example(0, 130, 8.0, [math.nan], 0)
def test_scores_that_are_infinite_or_no_number(seed, T, alpha, special, delay):
    """Forward and backward as in NumPy, whatever comes before and after them."""
    rng = np.random.default_rng(seed)
    s = (rng.normal(0.5, 1, (2, T, T)) / max(alpha - 1, 0.2)).astype(F)
    s = np.where(rng.random(s.shape) < 0.1, rng.choice(special, s.shape), s).astype(F)
    (got, saved), (expected, expected_saved) = (kernels.log_mask(s, alpha, delay) for kernels in (C, NUMPY))
    for same in (np.isnan, np.isneginf):
        np.testing.assert_array_equal(same(got), same(expected))
    np.testing.assert_allclose(got, expected, rtol=2e-2, atol=1e-3)
    dlog_i = np.where(np.isneginf(expected), 0, 1).astype(F)
    with np.errstate(all="ignore"):  # the steepest gates have no slope that float32 can hold
        ds, expected_ds = C.log_mask_backward(dlog_i, saved), NUMPY.log_mask_backward(dlog_i, expected_saved)
    np.testing.assert_array_equal(np.isfinite(ds), np.isfinite(expected_ds))
    assert not ds[~np.isfinite(s)].any() and not expected_ds[~np.isfinite(s)].any()


def test_what_is_gone_stays_so_whatever_comes_later():
    s = np.full((1, 130, 130), -1, F)
    s[0, 5:] = np.nan
    for kernels in (C, NUMPY):
        log_i = kernels.log_mask(s, 8.0)[0][0]
        assert np.isneginf(log_i[1:, 0]).all() and np.isneginf(log_i[4:, :4]).all() and np.isnan(log_i[6:, 5]).all()


@given(SEEDS, st.integers(1, 200), st.sampled_from(["gelu_new", "gelu", "relu"]), THREADS)
def test_activation(seed, n, kind, threads):
    x = (3 * np.random.default_rng(seed).normal(size=(2, n))).astype(F)
    for got, expected in zip(native.activation(x, kind, threads), NUMPY.activation(x, kind), strict=True):
        np.testing.assert_allclose(got, expected, **KERNEL)


def test_gelu_far_out():
    y, slope = C.activation(np.array([-1e30, -50, 50, 1e30], F), "gelu_new")
    assert (np.abs(y[:2]) < 1e-30).all() and y[2:].tolist() == [50, F(1e30)]
    assert (np.abs(slope[:2]) < 1e-6).all() and slope[2:].tolist() == [1, 1]


@given(SEEDS, st.integers(1, 5), st.integers(1, 100), st.sampled_from([1, 100]), st.booleans(), THREADS)
def test_cross_entropy(seed, T, V, size, ignored, threads):
    rng = np.random.default_rng(seed)
    logits, targets = (size * rng.normal(size=(2, T, V))).astype(F), rng.integers(-1 if ignored else 0, V, (2, T))
    loss, saved = native.cross_entropy(logits, targets, threads)
    expected, expected_saved = NUMPY.cross_entropy(logits, targets)
    assert loss == pytest.approx(expected, rel=1e-5, abs=1e-5)
    got = native.cross_entropy_backward(1.0, saved)
    np.testing.assert_allclose(got, NUMPY.cross_entropy_backward(1.0, expected_saved), **KERNEL)


def pruned_model(**fields):
    """A model whose masks are neither full nor empty, and ids [2, 71]."""
    config = Config(vocab_size=50, n_positions=80, n_embd=24, n_layer=3, n_head=3, eos_token_id=0, int_n_embd=4,
                    **fields)
    params = {name: np.asarray(p, F) * (4 if "int.weight" in name else 1)
              for name, p in weights.init_params(config, 0).items()}
    params |= {f"h.{layer}.attn.int_bias": np.array([0.5], F) for layer in range(3)}
    return config, params, np.random.default_rng(0).integers(0, 50, (2, 71))


def same_forward(params, ids, config, *rule):
    """That of both kernels, and what it found."""
    got, expected = (forward(params, ids, config, *rule, kernels=kernels) for kernels in (C, NUMPY))
    assert got.logits.dtype == got.interaction.dtype == F
    np.testing.assert_allclose(got.logits, expected.logits, rtol=0, atol=HF_FLOAT32 * np.abs(expected.logits).max())
    np.testing.assert_allclose(got.interaction, expected.interaction, **TRAINING_KERNELS)
    assert ((got.interaction == 0) == (expected.interaction == 0)).all()
    return got


@pytest.mark.parametrize("depth", [False, True])
@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0, 5.0, 65.0, math.inf])
@pytest.mark.parametrize("delay", [0, 3])
def test_the_forward_is_that_of_numpy(depth, alpha, delay):
    config, params, ids = pruned_model(propagate_in_depth=depth, int_delay=delay)
    for threshold in (0.0, 0.1):
        result = same_forward(params, ids, config, alpha, None, threshold)
        assert 0.01 < result.interaction[..., np.tri(71, k=-1, dtype=bool)].mean() < 0.99
        with omp_threads(3):
            again = forward(params, ids, config, alpha, threshold=threshold, kernels=native.kernels(threads=0))
        assert all(map(np.array_equal, again, result))  # whatever the number of threads


@pytest.mark.parametrize("depth", [False, True])
@pytest.mark.parametrize("rule", ["dense", "learned", "window:9", "strided:4,7", "sinks:2,9", "heavy_hitters:5,6"])
def test_the_forward_with_a_policy_is_that_of_numpy(depth, rule):
    config, params, ids = pruned_model(propagate_in_depth=depth)
    result = same_forward(params, ids, config, math.inf, policies.parse(rule))
    assert (result.interaction == 0).any() == (rule != "dense")
    both = policies.Policy("learned in a window", learned=True, window=20, heavy=3)
    same_forward(params, ids, config, 2.0, both)
    with pytest.raises(ValueError, match="take float32"):
        forward({name: p.astype(float) for name, p in params.items()}, ids, config, kernels=C)


@given(SEEDS, st.integers(1, 140), st.lists(SPECIAL, max_size=3), DELAYS)
def test_the_step_drops_the_same_to_the_bit(seed, T, special, delay):
    rng = np.random.default_rng(seed)
    s = rng.choice([*special, -1, 1, 2, 3], (2, T, T)).astype(F)
    (got, saved), (expected, _) = (kernels.log_mask(s, math.inf, delay) for kernels in (C, NUMPY))
    np.testing.assert_array_equal(got, expected)
    assert not C.log_mask_backward(np.ones_like(s), saved).any()


@pytest.mark.parametrize("depth", [False, True])
@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0, 5.0, math.inf])
@pytest.mark.parametrize("delay", [0, 3])
def test_the_losses_and_gradients_are_those_of_numpy(depth, alpha, delay):
    config, params, ids = pruned_model(propagate_in_depth=depth, int_delay=delay)
    loss, grads = loss_and_grads(params, ids[:, :-1], ids[:, 1:], config, alpha, 0.3, C)
    expected_loss, expected = loss_and_grads(params, ids[:, :-1], ids[:, 1:], config, alpha, 0.3)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    assert 0.01 < loss.sparsity < 0.99
    for name, g in grads.items():
        np.testing.assert_allclose(g, expected[name], rtol=0, atol=1e-4 * np.abs(expected[name]).max(), err_msg=name)
    with omp_threads(3):
        again = loss_and_grads(params, ids[:, :-1], ids[:, 1:], config, alpha, 0.3, native.kernels(threads=0))[1]
    assert all(np.array_equal(again[name], g) for name, g in grads.items())  # whatever the number of threads


def test_a_dense_model_too():
    config = Config(vocab_size=50, n_positions=40, n_embd=16, n_layer=2, n_head=2, eos_token_id=0)
    params = weights.init_params(config, 0)
    ids = np.random.default_rng(0).integers(0, 50, (1, 40))
    loss, _ = loss_and_grads(params, ids[:, :-1], ids[:, 1:], config, 1.0, 0.0, C)
    assert loss.total == pytest.approx(loss_and_grads(params, ids[:, :-1], ids[:, 1:], config, 1.0, 0.0)[0].total)
    same_forward(params, ids, config)


@pytest.mark.parametrize("policy", [policies.learned, policies.heavy_hitters(1, 2)], ids=str)
def test_what_is_kept_is_kept_in_c_too(policy):
    params, rng = random_params(SMALL, 0, np.float32), np.random.default_rng(0)
    ids, kept = rng.integers(0, 11, (2, 9)), rng.random((3, 2, 9, 9)) < 0.5
    for alpha in (2.0, math.inf):
        expected = forward(params, ids, SMALL, alpha, policy, kept=kept)
        got = forward(params, ids, SMALL, alpha, policy, kernels=C, kept=kept)
        np.testing.assert_allclose(got.interaction, expected.interaction, **TRAINING_KERNELS)
        np.testing.assert_allclose(got.logits, expected.logits, rtol=1e-4, atol=1e-4)
