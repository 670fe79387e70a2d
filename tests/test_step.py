"""One step of the optimiser beside the same step written by hand: every setting that it takes has its effect."""

import dataclasses
import math

import numpy as np
import pytest
from models import SMALL, random_params
from numpy.testing import assert_allclose
from tolerances import TRAINING_FLOAT32

from dcp_ref.model import loss_and_grads
from dcp_ref.training import TrainSettings
from dcp_ref.training.blas import Pool
from dcp_ref.training.checkpoint import State
from dcp_ref.training.step import train_step

TOKENS = np.random.default_rng(1).integers(0, SMALL.vocab_size, 400)
SETTINGS = TrainSettings(
    text=("unused",), out="unused", batch=4, micro_batch=2, steps=10, warmup=3, learning_rate=0.05, weight_decay=0.3,
    clip=0.25, gamma=0.7, seed=5,
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
    expected |= {"sparsity": loss.sparsity, "alpha": alpha} if pruned else {}
    assert state.step == step + 1
    assert row == pytest.approx(expected, rel=TRAINING_FLOAT32["rtol"])
