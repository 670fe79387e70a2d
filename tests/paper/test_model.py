"""The paper's model against code that nobody here wrote, and its gradients against projections."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from models import DELAYS, GOLDEN_DIR, SMALL, random_params
from tolerances import GOLDEN, HF_FLOAT32, PROJECTION

from dcp_ref import forward, load, loss_and_grads, policies
from dcp_ref.block import NUMPY
from dcp_ref.checkpoints import official
from dcp_ref.config import ACTIVATIONS

OFFICIAL = np.load(GOLDEN_DIR / "official_small.npz")
STATE = {name.removeprefix("param/"): OFFICIAL[name] for name in OFFICIAL.files if name.startswith("param/")}
SEEDS = st.integers(0, 2**32 - 1)
ALPHAS = ("1.1", "1.5", "2.0", "3.0", "4.0", "inf")


def relative(got, golden):
    return np.abs(got - golden).max() / np.abs(golden).max()


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_forward_and_loss_equal_the_official_code(depth, alpha):
    golden = {name: OFFICIAL[f"depth{depth}/alpha{alpha}/{name}"] for name in ("logits", "loss", "interaction")}
    model = official.from_official(STATE, int(OFFICIAL["config"][1]), bool(depth))
    result = forward(model.params, OFFICIAL["ids"], model.config, float(alpha))
    assert relative(result.logits, golden["logits"]) < GOLDEN
    assert relative(result.interaction, golden["interaction"]) < GOLDEN
    loss, _ = loss_and_grads(model.params, OFFICIAL["ids"], OFFICIAL["targets"], model.config, float(alpha), 0.0)
    assert relative(loss.cross_entropy, golden["loss"]) < GOLDEN
    assert loss.total == loss.cross_entropy


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("alpha", ALPHAS[:-1])
def test_every_gradient_equals_the_official_code(depth, alpha):
    prefix, gamma = f"depth{depth}/alpha{alpha}/", float(OFFICIAL["gamma"])
    model = official.from_official(STATE, int(OFFICIAL["config"][1]), bool(depth))
    loss, grads = loss_and_grads(
        model.params, OFFICIAL["ids"], OFFICIAL["targets"], model.config, float(alpha), gamma
    )
    assert relative(gamma * loss.sparsity, OFFICIAL[prefix + "regularizer"]) < GOLDEN
    assert loss.total == pytest.approx(loss.cross_entropy + gamma * loss.sparsity)
    assert grads.keys() == model.params.keys()
    for name, grad in official.to_official(grads).items():
        assert relative(grad, OFFICIAL[f"{prefix}grad/{name}"]) < GOLDEN, name


def test_a_plain_gpt2_equals_transformers():
    model, expected = load(GOLDEN_DIR / "hf_tiny"), np.load(GOLDEN_DIR / "hf_tiny/expected.npz")
    ids = expected["ids"]
    wide = {name: value.astype(np.float64) for name, value in model.params.items()}
    assert relative(forward(wide, ids, model.config).logits, expected["logits"]) < GOLDEN
    assert relative(forward(model.params, ids, model.config).logits, expected["logits"]) < HF_FLOAT32
    targets = np.concatenate([ids[:, 1:], np.full((len(ids), 1), -1)], axis=1)
    loss, grads = loss_and_grads(wide, ids, targets, model.config, math.inf, 0.0)
    assert relative(loss.cross_entropy, expected["mean_loss"]) < HF_FLOAT32  # transformers' is float32
    assert loss.sparsity == 1 and grads.keys() == model.params.keys()
    assert (forward(wide, ids, model.config).interaction == 1).all()


def test_the_dense_forward_decodes_greedily_like_transformers():
    model, expected = load(GOLDEN_DIR / "hf_tiny"), np.load(GOLDEN_DIR / "hf_tiny/expected.npz")
    ids = expected["ids"][:1, :4].tolist()
    while len(ids[0]) < expected["greedy"].shape[1]:
        ids[0].append(int(forward(model.params, np.array(ids), model.config).logits[0, -1].argmax()))
    assert ids == expected["greedy"].tolist()


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([1.0, 1.1, 1.5, 2.0, 2.5, 4.0, 6.0, 8.0]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(ACTIVATIONS),
    st.integers(1, SMALL.n_positions),
    DELAYS, st.sampled_from([0.0, -0.5, 1.0]),
)
def test_gradients_by_projection(seed, alpha, depth, tied, activation, length, delay, threshold):
    """<v, grad> is the derivative along v: a central difference in float64, for a random v over all parameters."""
    config = dataclasses.replace(
        SMALL, propagate_in_depth=depth, tie_word_embeddings=tied, activation_function=activation,
        scale_attn_by_inverse_layer_idx=True, int_delay=delay,
    )
    rng = np.random.default_rng(seed)
    params = random_params(config, seed)
    ids, targets = rng.integers(0, config.vocab_size, (2, 2, length))
    targets[0, 0] = -1
    direction = {name: rng.normal(size=value.shape) for name, value in params.items()}
    _, grads = loss_and_grads(params, ids, targets, config, alpha, 0.3, threshold=threshold)
    assert grads.keys() == params.keys()
    projected = sum((grads[name] * direction[name]).sum() for name in params)

    def total(h):
        moved = {name: value + h * direction[name] for name, value in params.items()}
        return loss_and_grads(moved, ids, targets, config, alpha, 0.3, threshold=threshold)[0].total

    differences = [(total(h) - total(-h)) / (2 * h) for h in (1e-6, 3e-7)]
    # else a gate's edge or relu's corner lies within the step, and there is no derivative to compare with
    assume(differences[0] == pytest.approx(differences[1], rel=PROJECTION, abs=PROJECTION))
    assert projected == pytest.approx(differences[1], rel=PROJECTION, abs=PROJECTION)


@given(st.integers(0, 2**32 - 1), st.sampled_from([1.0, 2.5]))
def test_gradients_of_distillation_by_projection(seed, alpha):
    rng = np.random.default_rng(seed)
    params, direction = random_params(SMALL, seed), random_params(SMALL, seed + 1)
    ids, targets = rng.integers(0, SMALL.vocab_size, (2, 2, 5))
    targets[0, 0] = -1
    teacher_logits = rng.normal(size=(2, 5, SMALL.vocab_size))
    loss, grads = loss_and_grads(params, ids, targets, SMALL, alpha, 0.3, NUMPY, teacher_logits, 0.7)
    plain, plain_grads = loss_and_grads(params, ids, targets, SMALL, alpha, 0.3)
    assert plain.distillation == 0 and loss[1:3] == plain[1:3]
    assert loss.total == pytest.approx(plain.total + 0.7 * loss.distillation)
    projected = sum(((grads[name] - plain_grads[name]) * direction[name]).sum() for name in params)

    def distilled(h):
        moved = {name: value + h * direction[name] for name, value in params.items()}
        return 0.7 * loss_and_grads(moved, ids, targets, SMALL, alpha, 0.3, NUMPY, teacher_logits, 0.7)[0].distillation

    differences = [(distilled(h) - distilled(-h)) / (2 * h) for h in (1e-6, 3e-7)]
    assume(differences[0] == pytest.approx(differences[1], rel=PROJECTION, abs=PROJECTION))
    assert projected == pytest.approx(differences[1], rel=PROJECTION, abs=PROJECTION)


@pytest.mark.parametrize(("bias", "kept"), [(1e3, 1), (-1e3, 0)])
@pytest.mark.parametrize("alpha", [1.0, 2.0, 8.0, math.inf])
@pytest.mark.parametrize("depth", [False, True])
@pytest.mark.parametrize("delay", [0, 1, 3, 2**40])
def test_all_kept_and_all_dropped(bias, kept, alpha, depth, delay):
    config = dataclasses.replace(SMALL, propagate_in_depth=depth, int_delay=delay)
    params = random_params(config, 0)
    for layer in range(config.n_layer):
        params[f"h.{layer}.attn.int_bias"][:] = bias
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (1, config.n_positions))
    result = forward(params, ids, config, alpha)
    T, near = config.n_positions, min(delay, config.n_positions - 1)
    old = np.tri(T, k=-1 - near, dtype=bool)
    np.testing.assert_array_equal(result.interaction[..., old], kept)
    np.testing.assert_array_equal(result.interaction[..., ~old], 1)
    loss, grads = loss_and_grads(params, ids, ids, config, alpha, 0.5)
    assert loss.sparsity == pytest.approx(1 if kept else 1 - old.sum() / (T * (T - 1) / 2))
    assert all(np.isfinite(grad).all() for grad in grads.values())
    if kept:
        plain = dataclasses.replace(config, int_n_embd=None)
        np.testing.assert_allclose(result.logits, forward(params, ids, plain).logits, rtol=PROJECTION)
    else:  # each token sees itself and `delay` others in each layer: the order of those before does not matter
        seen = min(2 + config.n_layer * near, T)
        swapped = ids[:, [1, 0, *range(2, T)]]
        np.testing.assert_array_equal(forward(params, swapped, config, alpha).logits[:, seen:], result.logits[:, seen:])


@given(SEEDS, st.sampled_from([1.0, 1.5, 2.0, 8.0, math.inf]), st.floats(-2, 2), st.booleans(), DELAYS)
def test_a_threshold_is_taken_from_every_score(seed, alpha, threshold, depth, delay):
    """In exact numbers a bias that is as much less would do the same."""
    config = dataclasses.replace(SMALL, propagate_in_depth=depth, int_delay=delay)
    params, ids = random_params(config, seed), np.random.default_rng(seed).integers(0, config.vocab_size, (2, 9))
    less = {name: x - threshold if name.endswith("int_bias") else x for name, x in params.items()}
    expected = forward(less, ids, config, alpha)
    result = forward(params, ids, config, alpha, threshold=threshold)
    assume(alpha < 3 or np.abs(result.logits - expected.logits).max() < 1e-3)  # else a score is at the edge of a gate
    np.testing.assert_allclose(result.logits, expected.logits, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(result.interaction, expected.interaction, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0, math.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("delay", [0, 2])
def test_thresholds_beyond_all_scores(alpha, dtype, delay):
    config, params, ids = dataclasses.replace(SMALL, int_delay=delay), random_params(SMALL, 0, dtype), [[1, 2, 3, 4, 5]]
    plain = forward(params, ids, dataclasses.replace(config, int_n_embd=None))
    for threshold in (-math.inf, -1e300):
        result = forward(params, ids, config, alpha, threshold=threshold)
        np.testing.assert_array_equal(result.logits, plain.logits)
    for threshold in (math.inf, 1e300, np.int64(10**9), 10**9):
        result = forward(params, ids, config, alpha, threshold=threshold)
        assert result.logits.dtype == result.interaction.dtype == dtype
        old = np.broadcast_to(np.tri(5, k=-1 - delay, dtype=bool), result.interaction.shape)
        np.testing.assert_array_equal(result.interaction, np.where(old, 0, 1))


def test_a_score_is_rounded_before_the_threshold_is_taken_from_it():
    """2^-30 + 1 is 1 in float32, and so a tie; were the threshold taken from beta, 2^-30 would be left."""
    params = random_params(SMALL, 0, np.float32)
    for layer in range(SMALL.n_layer):
        p = {name: params[f"h.{layer}.{name}"] for name in ("ln_1.weight", "ln_1.bias", "attn.q_int.weight",
                                                           "attn.k_int.weight", "attn.int_bias")}
        for x in p.values():
            x[...] = 0
        p["ln_1.bias"][0], p["attn.q_int.weight"][0, 0], p["attn.k_int.weight"][0, 0] = 1, 2, 2**-30
        p["attn.int_bias"][0] = 1
    earlier = np.tri(4, k=-1, dtype=bool)
    for threshold, kept in ((1, 0), (1 - 2**-24, 1), (-3, 1), (1.5, 0)):
        assert (forward(params, [[1, 2, 3, 4]], SMALL, threshold=threshold).interaction[..., earlier] == kept).all()


@pytest.mark.parametrize("wrong", [math.nan, np.float32(math.nan), None, "0.5", [0.5], 1j])
def test_a_threshold_that_is_no_number(wrong):
    with pytest.raises(ValueError, match="threshold must be a number, not "):
        forward(random_params(SMALL, 0), [[1]], SMALL, threshold=wrong)


def test_a_threshold_without_scores():
    params, plain = random_params(SMALL, 0), dataclasses.replace(SMALL, int_n_embd=None)
    for options in ({"config": plain}, {"config": SMALL, "policy": policies.window(3)}):
        forward(params, [[1, 2]], threshold=0, **options)
        for threshold in (0.5, -math.inf):
            with pytest.raises(ValueError, match=f"threshold is {threshold}, but nothing is dropped by a learned"):
                forward(params, [[1, 2]], threshold=threshold, **options)


def test_one_token_has_nothing_to_drop():
    params = random_params(SMALL, 0)
    loss, _ = loss_and_grads(params, [[3]], [[4]], SMALL, 2.0, 0.5)
    assert loss.sparsity == 0 and loss.total == loss.cross_entropy
    assert forward(params, [[3]], SMALL).interaction.tolist() == [[[[1.0]]]] * SMALL.n_layer


def test_float32_stays_float32():
    params = random_params(SMALL, 0, np.float32)
    for alpha in (1.0, 1.5, 3.0, math.inf):
        result = forward(params, [[1, 2, 3]], SMALL, alpha)
        _, grads = loss_and_grads(params, [[1, 2, 3]], [[2, 3, 4]], SMALL, alpha, np.float64(0.1))
        assert {x.dtype for x in (*result, *grads.values())} == {np.dtype(np.float32)}
        _, grads = loss_and_grads(params, [[1, 2, 3]], [[2, 3, 4]], SMALL, alpha, 0.1, NUMPY, result.logits,
                                  np.float64(0.5))
        assert {x.dtype for x in grads.values()} == {np.dtype(np.float32)}


def test_parameters_are_not_changed():
    params = random_params(SMALL, 0)
    before = {name: value.copy() for name, value in params.items()}
    loss_and_grads(params, [[1, 2, 3]], [[2, 3, 4]], SMALL, 2.0, 0.1)
    for name, value in params.items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, 2], "integers"),
        ([[]], "integers"),
        ([[1.0]], "integers"),
        ([[11]], "11 is not in"),
        ([[-1]], "-1 is not in"),
        ([[0] * 10], "n_positions"),
    ],
)
def test_bad_ids_are_named(ids, message):
    with pytest.raises(ValueError, match=message):
        forward(random_params(SMALL, 0), ids, SMALL)
    with pytest.raises(ValueError, match=message):
        loss_and_grads(random_params(SMALL, 0), ids, ids, SMALL, 2.0, 0.1)


def test_bad_targets_and_alpha_are_named():
    params = random_params(SMALL, 0)
    with pytest.raises(ValueError, match="targets"):
        loss_and_grads(params, [[1, 2]], [[1]], SMALL, 2.0, 0.1)
    with pytest.raises(ValueError, match="targets: -2"):
        loss_and_grads(params, [[1, 2]], [[1, -2]], SMALL, 2.0, 0.1)
    with pytest.raises(ValueError, match="alpha"):
        forward(params, [[1, 2]], SMALL, 0.5)
