"""One step of the optimiser beside the same step written by hand: every setting that it takes has its effect."""

import dataclasses
import math

import numpy as np
import pytest
from models import SMALL, random_params
from numpy.testing import assert_allclose
from tolerances import TRAINING_FLOAT32

from dcp_ref.checkpoints.weights import INTERACTION, Model
from dcp_ref.model import forward, loss_and_grads
from dcp_ref.training import TrainSettings, schedules
from dcp_ref.training.parallel import Pool
from dcp_ref.training.run_files import State
from dcp_ref.training.steering import Steering, steer
from dcp_ref.training.step import share_kept, train_step

TOKENS = np.random.default_rng(1).integers(0, SMALL.vocab_size, 400)
SETTINGS = TrainSettings(
    text=("unused",), out="unused", batch=4, micro_batch=2, steps=10, warmup=3, learning_rate=0.05, weight_decay=0.3,
    clip=0.25, prune=True, gamma=0.7, seed=5,
)
CONTEXT = 8


def state_before(step, config):
    """In the middle of a run: the optimizer has seen gradients."""
    params = random_params(config, 2, np.float32)
    m = {name: 0.01 * p for name, p in random_params(config, 3, np.float32).items()}
    return State(step, config, params, m, {name: np.square(p) for name, p in m.items()})


@pytest.mark.parametrize("pruned", [True, False])
@pytest.mark.parametrize(("step", "rate", "alpha"), [
    (1, 0.05 * 2 / 3, 8 - 7 * (1 + math.cos(math.pi / 9)) / 2),  # while it warms up
    (5, 0.005 + 0.045 * (1 + math.cos(math.pi / 3)) / 2, 8 - 7 * (1 + math.cos(math.pi * 5 / 9)) / 2),
], ids=["early", "later"])
def test_a_step_by_hand(step, rate, alpha, pruned):
    config = SMALL if pruned else dataclasses.replace(SMALL, int_n_embd=None)
    state, old = state_before(step, config), state_before(step, config)
    starts = np.random.default_rng([5, step]).integers(0, len(TOKENS) - CONTEXT, 4)
    ids, targets = (np.array([TOKENS[s : s + CONTEXT] for s in starts + shift]) for shift in (0, 1))
    loss, grads = loss_and_grads(old.params, ids, targets, config, alpha if pruned else math.inf, 0.7)
    norm = math.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in grads.values()))
    assert norm > 0.25  # it is clipped

    with Pool(2) as pool:
        row = train_step(SETTINGS, state, TOKENS, CONTEXT, pool)

    for name, p in old.params.items():
        g = grads[name] * 0.25 / norm
        m, v = 0.9 * old.m[name] + 0.1 * g, 0.95 * old.v[name] + 0.05 * g**2
        update = m / (1 - 0.9 ** (step + 1)) / (np.sqrt(v / (1 - 0.95 ** (step + 1))) + 1e-8)
        expected = p - rate * (update + (0.3 * p if p.ndim == 2 else 0))
        for got, wanted in ((state.m[name], m), (state.v[name], v), (state.params[name], expected)):
            assert_allclose(got, wanted, **TRAINING_FLOAT32, err_msg=name)
    cross_entropy = loss.cross_entropy
    expected = {"step": step + 1, "tokens": 32 * (step + 1), "cross_entropy": cross_entropy, "learning_rate": rate,
                "loss": cross_entropy + 0.7 * loss.sparsity if pruned else cross_entropy, "grad_norm": norm}
    expected |= {"sparsity": loss.sparsity, "alpha": alpha, "gamma": 0.7} if pruned else {}
    assert state.step == step + 1
    assert row == pytest.approx(expected, rel=TRAINING_FLOAT32["rtol"])


def take_step(settings, state, teacher=None):
    with Pool(2) as pool:
        return train_step(settings, state, TOKENS, CONTEXT, pool, teacher)


def first_batch(step):
    starts = np.random.default_rng([5, step]).integers(0, len(TOKENS) - CONTEXT, 4)
    return [np.array([TOKENS[s : s + CONTEXT] for s in starts + shift]) for shift in (0, 1)]


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_a_step_learns_from_its_teacher(weight):
    state, old = state_before(5, SMALL), state_before(5, SMALL)
    dense = dataclasses.replace(SMALL, int_n_embd=None)
    teacher = Model(dense, random_params(dense, 7, np.float32), None)
    settings = dataclasses.replace(SETTINGS, teacher="unused", distill=weight)
    row = take_step(settings, state, teacher)
    ids, targets = first_batch(5)
    wanted = forward(teacher.params, ids, dense).logits
    learned = {"teacher_logits": wanted, "distill": weight}
    loss, grads = loss_and_grads(old.params, ids, targets, SMALL, row["alpha"], 0.7, **learned)
    assert (row["loss"], row["distillation"]) == pytest.approx((loss.total, loss.distillation), rel=1e-5)
    assert loss.distillation > 0.1
    norm = math.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in grads.values()))
    assert row["grad_norm"] == pytest.approx(norm, rel=1e-5)


def test_a_step_of_the_interaction_weights_alone_leaves_all_others_to_the_bit():
    state, old = state_before(5, SMALL), state_before(5, SMALL)
    fresh = State.fresh(SMALL, state.params, only_interaction=True)
    names = {name for name in state.params if INTERACTION.fullmatch(name)}
    assert fresh.m.keys() == fresh.v.keys() == names and len(names) == 3 * SMALL.n_layer
    row = take_step(SETTINGS, fresh)
    for name, p in old.params.items():
        assert (fresh.params[name] == p).all() == (name not in names), name
    ids, targets = first_batch(0)
    _, grads = loss_and_grads(old.params, ids, targets, SMALL, 1.0, 0.7)
    norm = math.sqrt(sum(np.sum(grads[name].astype(np.float64) ** 2) for name in names))
    assert row["grad_norm"] == pytest.approx(norm, rel=1e-5)  # the others' gradients do not clip these


@pytest.mark.parametrize("depth", [False, True])
def test_a_step_steers_gamma_by_the_share_kept_at_alpha_inf(depth):
    config = dataclasses.replace(SMALL, propagate_in_depth=depth)
    state, old = state_before(5, config), state_before(5, config)
    state.steering = Steering(0.4, -0.5)
    row = take_step(dataclasses.replace(SETTINGS, target_kept=0.3), state)
    ids, targets = first_batch(5)
    kept = share_kept(forward(old.params, ids[:1], config), config)
    after, factor = steer(Steering(0.4, -0.5), kept, 0.3, 5, 10)
    assert state.steering == after and row["gamma"] == 0.7 * factor
    loss, _ = loss_and_grads(old.params, ids, targets, config, row["alpha"], row["gamma"])
    assert row["loss"] == pytest.approx(loss.total, rel=1e-5)


def test_a_step_raises_alpha_over_its_share_of_the_steps():
    rows = [take_step(dataclasses.replace(SETTINGS, alpha_share=0.5), state_before(step, SMALL)) for step in (2, 5, 9)]
    assert [row["alpha"] for row in rows] == [schedules.alpha(2, 10, 0.5), 8.0, 8.0]


def test_a_step_trains_each_sequence_under_a_threshold_of_its_own():
    low, high = -2.0, 1.0
    state, old = state_before(5, SMALL), state_before(5, SMALL)
    row = take_step(dataclasses.replace(SETTINGS, micro_batch=1, threshold_range=(low, high)), state)
    ids, targets = first_batch(5)
    thresholds = schedules.thresholds(low, high, 5, 5, len(ids))
    assert ((low < thresholds) & (thresholds < high)).all() and len(set(thresholds)) == len(ids)
    losses, grads = zip(*[loss_and_grads(
        old.params, ids[n : n + 1], targets[n : n + 1], SMALL, row["alpha"], 0.7 * (t - low) / (high - low),
        threshold=t) for n, t in enumerate(thresholds)], strict=True)
    assert row["loss"] == pytest.approx(np.mean([loss.total for loss in losses]), rel=1e-5)
    assert row["sparsity"] == pytest.approx(np.mean([loss.sparsity for loss in losses]), rel=1e-5)
    mean = {name: np.mean([g[name] for g in grads], axis=0, dtype=np.float64) for name in grads[0]}
    assert row["grad_norm"] == pytest.approx(math.sqrt(sum(np.sum(g**2) for g in mean.values())), rel=1e-5)
