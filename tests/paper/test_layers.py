"""Each layer's backward against differences of its forward, along random directions, in float64."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tolerances import PROJECTION

from dcp_ref import layers
from dcp_ref.attention import attention, attention_backward
from dcp_ref.interaction import log_mask, log_mask_backward, scores, scores_backward, sparsity, sparsity_backward
from dcp_ref.sigmoid import alpha_sigmoid

SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.integers(1, 5)


def check_backward(forward, backward, inputs, seed):
    """<dy, J v> by a central difference equals <J^T dy, v>, for random dy and v. dy is 0 where y is -inf."""
    rng = np.random.default_rng(seed)
    y, saved = forward(*inputs)
    dy = np.where(np.isfinite(y), rng.normal(size=np.shape(y)), 0)
    grads = backward(dy if np.ndim(y) else float(dy), saved)
    grads = grads if isinstance(grads, tuple) else (grads,)
    assert [g.shape for g in grads] == [np.shape(x) for x in inputs]
    directions = [rng.normal(size=np.shape(x)) for x in inputs]
    projected = sum((g * v).sum() for g, v in zip(grads, directions, strict=True))
    h = 1e-6
    ends = [forward(*(x + sign * h * v for x, v in zip(inputs, directions, strict=True)))[0] for sign in (1, -1)]
    with np.errstate(invalid="ignore"):
        difference = np.nansum(dy * (ends[0] - ends[1])) / (2 * h)
    assert projected == pytest.approx(difference, rel=PROJECTION, abs=PROJECTION)


@given(SEEDS, SIZES, SIZES, SIZES)
def test_linear(seed, T, C, K):
    rng = np.random.default_rng(seed)
    check_backward(layers.linear, layers.linear_backward,
                   [rng.normal(size=s) for s in ((2, T, C), (C, K), (K,))], seed)


@given(SEEDS, SIZES, st.integers(2, 6))
def test_layer_norm(seed, T, C):
    rng = np.random.default_rng(seed)
    check_backward(lambda x, g, b: layers.layer_norm(x, g, b, 1e-3), layers.layer_norm_backward,
                   [rng.normal(size=s) for s in ((2, T, C), (C,), (C,))], seed)


@pytest.mark.parametrize("kind", ["gelu_new", "gelu", "relu"])
def test_activation(kind):
    x = np.random.default_rng(0).normal(size=(4, 50)) * 2
    check_backward(lambda x: layers.activation(x, kind), layers.activation_backward, [x], 0)


def test_activation_values():
    x = np.array([-1.0, 0.0, 1.0])
    exact = [v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in x]
    np.testing.assert_allclose(layers.activation(x, "gelu")[0], exact, rtol=1e-15)
    np.testing.assert_allclose(layers.activation(x, "gelu_new")[0], exact, atol=3e-4)  # an approximation of it
    assert layers.activation(x, "relu")[0].tolist() == [0, 0, 1]


@given(SEEDS, SIZES, SIZES)
def test_softmax(seed, T, n):
    x = np.random.default_rng(seed).normal(size=(2, T, n)) * 3
    check_backward(layers.softmax, layers.softmax_backward, [x], seed)


def test_softmax_of_minus_infinity_is_exactly_zero():
    p, _ = layers.softmax(np.array([[0.0, -np.inf, 1e4]]))
    assert p.tolist() == [[0, 0, 1]]


@given(SEEDS, SIZES)
def test_embedding_adds_up_repeated_tokens(seed, T):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 3, (2, T))
    check_backward(lambda wte, wpe: layers.embedding(ids, wte, wpe), layers.embedding_backward,
                   [rng.normal(size=(3, 4)), rng.normal(size=(6, 4))], seed)


@given(SEEDS, SIZES, st.integers(2, 6), st.booleans())
def test_cross_entropy(seed, T, V, ignore_all):
    rng = np.random.default_rng(seed)
    targets = np.where(ignore_all, -1, rng.integers(-1, V, (2, T)))
    check_backward(lambda x: layers.cross_entropy(x, targets), layers.cross_entropy_backward,
                   [rng.normal(size=(2, T, V)) * 3], seed)


def test_cross_entropy_by_hand():
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
    assert layers.cross_entropy(logits + 100, np.array([1, 2]))[0] == pytest.approx(-math.log(0.25 * 0.8) / 2)
    assert layers.cross_entropy(logits, np.array([-1, 2]))[0] == pytest.approx(-math.log(0.8))


@given(SEEDS, SIZES, st.integers(2, 6), st.booleans())
def test_distillation(seed, T, V, ignore_all):
    rng = np.random.default_rng(seed)
    targets = np.where(ignore_all, -1, rng.integers(-1, V, (2, T)))
    teacher, student = rng.normal(size=(2, 2, T, V)) * 3
    check_backward(lambda x: layers.distillation(x, teacher, targets), layers.distillation_backward, [student], seed)
    assert layers.distillation(teacher + 5, teacher, targets)[0] == pytest.approx(0, abs=1e-12)


def test_distillation_by_hand():
    p, q = np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]), np.array([[0.25, 0.5, 0.25], [0.1, 0.4, 0.5]])
    each = [0.5 * math.log(2) - 0.25 * math.log(2), 0.1 * math.log(1 / 4) + 0.8 * math.log(8 / 5)]
    student, teacher = np.log(q) + 100, np.log(p) - 100
    assert layers.distillation(student, teacher, np.array([1, 2]))[0] == pytest.approx(sum(each) / 2)
    assert layers.distillation(student, teacher, np.array([-1, 2]))[0] == pytest.approx(each[1])
    with pytest.raises(ValueError, match=r"teacher_logits \[2, 2\] must be as logits \[2, 3\]"):
        layers.distillation(student, teacher[:, :2], np.array([1, 2]))


@given(SEEDS, st.integers(1, 6), SIZES, st.integers(1, 4))
def test_scores(seed, T, C, r):
    rng = np.random.default_rng(seed)
    check_backward(scores, scores_backward, [rng.normal(size=s) for s in ((2, T, C), (C, r), (C, r), (1,))], seed)


@given(SEEDS, st.integers(1, 6), st.sampled_from([1.0, 1.3, 1.7]), st.sampled_from([0, 1, 3, 2**70]))
def test_log_mask(seed, T, alpha, delay):
    """At small alpha, whose gates are smooth at the edge too; the others by projection of the whole model."""
    s = np.random.default_rng(seed).uniform(-0.9, 0.9, (2, T, T))
    check_backward(lambda s: log_mask(s, alpha, delay), log_mask_backward, [s], seed)


def test_log_mask_is_a_product_down_the_queries():
    s = np.array([[9.0, 9, 9], [0.2, 9, 9], [0.6, -0.4, 9]])  # alpha = 2: keep = (s + 1) / 2
    mask = np.exp(log_mask(s, 2.0)[0])
    np.testing.assert_allclose(mask, [[1, 1, 1], [0.6, 1, 1], [0.6 * 0.8, 0.3, 1]])
    hard = np.exp(log_mask(np.array([[0.0, 0, 0], [-1, 0, 0], [5, 5, 0]]), math.inf)[0])
    assert hard.tolist() == [[1, 1, 1], [0, 1, 1], [0, 1, 1]]  # token 0 stays gone, whatever token 2 thinks of it


@given(SEEDS, st.integers(1, 9), st.sampled_from([1.0, 2.0, 3.0, math.inf]), st.sampled_from([0, 1, 2, 3, 2**70]))
def test_log_mask_by_definition(seed, T, alpha, delay):
    """A product of gates, pair by pair, of which those within the delay are 1; integers, so that ties are there."""
    s = np.random.default_rng(seed).integers(-2, 3, (T, T)) / 2
    keep = [[alpha_sigmoid(s[i, j], alpha) if i - j > delay else 1.0 for j in range(T)] for i in range(T)]
    log_i, saved = log_mask(s, alpha, delay)
    expected = [[math.prod(keep[m][j] for m in range(j + 1, i + 1)) for j in range(T)] for i in range(T)]
    np.testing.assert_allclose(np.exp(log_i), expected, rtol=1e-12, atol=0)
    ds = log_mask_backward(np.ones((T, T)), saved)
    assert (ds[np.subtract.outer(np.arange(T), np.arange(T)) <= delay] == 0).all()


def test_a_dropped_token_has_no_gradient_but_others_do():
    s = np.array([[0.0, 0, 0], [-3, 0, 0], [0.1, 0.1, 0]])
    log_i, saved = log_mask(s, 2.0)
    ds = log_mask_backward(np.exp(log_i), saved)
    assert np.isfinite(ds).all() and ds[1, 0] == 0 and ds[2, 1] > 0


@given(SEEDS, st.integers(1, 6))
def test_sparsity(seed, T):
    log_i = -np.random.default_rng(seed).exponential(size=(3, 2, T, T))
    check_backward(sparsity, sparsity_backward, [log_i], seed)
    pairs = [np.exp(m[i, j]) for m in log_i.reshape(-1, T, T) for i in range(T) for j in range(i)]
    assert sparsity(log_i)[0] == pytest.approx(np.mean(pairs) if pairs else 0)


@given(SEEDS, st.integers(1, 5), st.integers(1, 3), st.integers(1, 4))
def test_attention(seed, T, H, D):
    rng = np.random.default_rng(seed)
    q, k, v = rng.normal(size=(3, 2, H, T, D))
    log_i = -rng.exponential(size=(2, T, T))
    check_backward(lambda *x: attention(*x, 0.7), attention_backward, [q, k, v, log_i], seed)


def test_attention_by_hand():
    q = k = np.zeros((1, 3, 2))
    v = np.arange(6.0).reshape(1, 3, 2)
    log_i = np.log(np.array([[1, 1, 1], [1, 1, 1], [0.5, 1e-300, 1]]))
    log_i[2, 1] = -np.inf
    y, _ = attention(q, k, v, log_i, 1.0)
    np.testing.assert_allclose(y[0], [[0, 1], [1, 2], (0.5 * v[0, 0] + v[0, 2]) / 1.5])
