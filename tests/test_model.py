"""The paper's model against code that nobody here wrote, and its gradients against projections."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from models import GOLDEN_DIR, SMALL, random_params
from tolerances import GOLDEN, HF_FLOAT32, PROJECTION

from dcp_ref import forward, layers, load, loss_and_grads, official
from dcp_ref.config import ACTIVATIONS

OFFICIAL = np.load(GOLDEN_DIR / "official_small.npz")
STATE = {name.removeprefix("param/"): OFFICIAL[name] for name in OFFICIAL.files if name.startswith("param/")}
ALPHAS = ("1.1", "1.5", "2.0", "3.0", "4.0", "inf")


@pytest.fixture(autouse=True, scope="module", params=[3, 64])
def _block(request):
    """Everything with several blocks of queries, and with one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "BLOCK", request.param)
        yield


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
)
def test_gradients_by_projection(seed, alpha, depth, tied, activation, length):
    """<v, grad> is the derivative along v: a central difference in float64, for a random v over all parameters."""
    config = dataclasses.replace(
        SMALL, propagate_in_depth=depth, tie_word_embeddings=tied, activation_function=activation,
        scale_attn_by_inverse_layer_idx=True,
    )
    rng = np.random.default_rng(seed)
    params = random_params(config, seed)
    ids, targets = rng.integers(0, config.vocab_size, (2, 2, length))
    targets[0, 0] = -1
    direction = {name: rng.normal(size=value.shape) for name, value in params.items()}
    _, grads = loss_and_grads(params, ids, targets, config, alpha, 0.3)
    assert grads.keys() == params.keys()
    projected = sum((grads[name] * direction[name]).sum() for name in params)

    def total(h):
        moved = {name: value + h * direction[name] for name, value in params.items()}
        return loss_and_grads(moved, ids, targets, config, alpha, 0.3)[0].total

    differences = [(total(h) - total(-h)) / (2 * h) for h in (1e-6, 3e-7)]
    # else a gate's edge or relu's corner lies within the step, and there is no derivative to compare with
    assume(differences[0] == pytest.approx(differences[1], rel=PROJECTION, abs=PROJECTION))
    assert projected == pytest.approx(differences[1], rel=PROJECTION, abs=PROJECTION)


@pytest.mark.parametrize(("bias", "kept"), [(1e3, 1), (-1e3, 0)])
@pytest.mark.parametrize("alpha", [1.0, 2.0, 8.0, math.inf])
@pytest.mark.parametrize("depth", [False, True])
def test_all_kept_and_all_dropped(bias, kept, alpha, depth):
    config = dataclasses.replace(SMALL, propagate_in_depth=depth)
    params = random_params(config, 0)
    for layer in range(config.n_layer):
        params[f"h.{layer}.attn.int_bias"][:] = bias
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (1, config.n_positions))
    result = forward(params, ids, config, alpha)
    earlier = np.tri(config.n_positions, k=-1, dtype=bool)
    np.testing.assert_array_equal(result.interaction[..., earlier], kept)
    np.testing.assert_array_equal(result.interaction[..., ~earlier], 1)
    loss, grads = loss_and_grads(params, ids, ids, config, alpha, 0.5)
    assert loss.sparsity == kept
    assert all(np.isfinite(grad).all() for grad in grads.values())
    if kept:
        plain = dataclasses.replace(config, int_n_embd=None)
        np.testing.assert_allclose(result.logits, forward(params, ids, plain).logits, rtol=PROJECTION)
    else:  # each token sees itself alone: the order of the others does not matter
        swapped = ids[:, [1, 0, *range(2, config.n_positions)]]
        np.testing.assert_array_equal(forward(params, swapped, config, alpha).logits[:, 2:], result.logits[:, 2:])


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
