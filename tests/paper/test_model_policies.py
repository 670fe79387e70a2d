"""The dense forward under a policy: the paper's where it is learned, else a plain model with another mask."""

import dataclasses
import math

import numpy as np
import pytest
from cache_tools import any_policies
from hypothesis import given
from hypothesis import strategies as st
from models import SMALL, random_params
from policy_tools import by_position, heavy_by_definition

from dcp_ref import block, forward, policies

PLAIN = dataclasses.replace(SMALL, int_n_embd=None)
SEEDS = st.integers(0, 2**32 - 1)


def random_ids(seed, batch=2):
    return np.random.default_rng(seed).integers(0, SMALL.vocab_size, (batch, SMALL.n_positions))


@pytest.mark.parametrize("depth", [False, True])
@pytest.mark.parametrize("alpha", [1.0, 2.5, math.inf])
def test_learned_is_the_papers_and_dense_a_plain_model(alpha, depth):
    config, params, ids = dataclasses.replace(SMALL, propagate_in_depth=depth), random_params(SMALL, 0), random_ids(0)
    for got, expected in [
        (forward(params, ids, config, alpha, policies.learned), forward(params, ids, config, alpha)),
        (forward(params, ids, config, alpha, policies.dense), forward(params, ids, PLAIN)),
        (forward(params, ids, PLAIN, alpha, policies.dense), forward(params, ids, PLAIN)),
    ]:
        np.testing.assert_array_equal(got.logits, expected.logits)
        np.testing.assert_array_equal(got.interaction, expected.interaction)


@given(any_policies(["window", "strided", "sinks"]), st.booleans(), SEEDS)
def test_rules_by_position_are_one_mask_for_every_layer(policy, depth, seed):
    config = dataclasses.replace(SMALL, propagate_in_depth=depth)
    params, ids = random_params(config, seed), random_ids(seed)
    result = forward(params, ids, config, 2.0, policy)
    stays = by_position(policy, SMALL.n_positions)
    np.testing.assert_array_equal(result.interaction, np.broadcast_to(stays, result.interaction.shape))
    with pytest.MonkeyPatch.context() as patch:
        log_i = np.where(stays, 0, -np.inf)
        patch.setattr(block, "_own_log_mask", lambda n, *_: (np.broadcast_to(log_i, (len(n), *log_i.shape)), None))
        np.testing.assert_array_equal(result.logits, forward(params, ids, config).logits)


class Recorded(policies.Policy):
    """Keeps what the model calls it with, and what it answers."""

    def log_mask(self, q, k, log_other, scale, *rest):
        mask = super().log_mask(q, k, log_other, scale, *rest)
        calls.append((q, k, np.broadcast_to(log_other, mask.shape), scale, mask))
        return mask


calls = []


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("depth", [False, True])
def test_heavy_hitters_see_what_earlier_layers_and_the_scores_drop(depth, learned):
    config = dataclasses.replace(SMALL, propagate_in_depth=depth, scale_attn_by_inverse_layer_idx=True)
    params, ids = random_params(config, 1), random_ids(1)
    calls.clear()
    result = forward(params, ids, config, policy=Recorded("mine", learned, window=2, heavy=2))
    handed = 0.0
    for layer, (q, k, log_other, scale, mask) in enumerate(calls):
        assert scale == config.attention_scale(layer)
        if not learned:
            np.testing.assert_array_equal(log_other, np.broadcast_to(handed, mask.shape))
        for b in range(len(ids)):
            _, gone = heavy_by_definition(2, 2, q[b], k[b], log_other[b], scale)
            np.testing.assert_array_equal(mask[b] == -np.inf, gone)
        handed = log_other + mask if depth else 0.0
        if not depth:  # the layer's own I has both, and no more
            np.testing.assert_array_equal(result.interaction[layer], np.exp(log_other + mask))
        elif not learned:
            np.testing.assert_array_equal(result.interaction[layer], np.exp(mask))
    assert len(calls) == config.n_layer and (result.interaction == 0).any()
    assert not learned or any((call[2] == -np.inf).any() for call in calls)


def test_float32_stays_float32():
    params = random_params(SMALL, 0, np.float32)
    for policy in (policies.window(2), policies.heavy_hitters(1, 2), policies.learned):
        assert {x.dtype for x in forward(params, random_ids(0), SMALL, policy=policy)} == {np.dtype(np.float32)}


def test_what_is_no_policy_or_does_not_fit_is_refused():
    params, ids = random_params(SMALL, 0), random_ids(0)
    with pytest.raises(ValueError, match="policy learned: this model has no interaction weights"):
        forward(params, ids, PLAIN, policy=policies.learned)
    with pytest.raises(TypeError, match=r"policy must be None or a Policy, not 'window:3'"):
        forward(params, ids, SMALL, policy="window:3")


@given(any_policies(), st.booleans(), SEEDS)
def test_no_rule_drops_what_is_kept(policy, depth, seed):
    """A kept pair stays where its token was there until then; the rest of the row is judged as ever."""
    config = dataclasses.replace(SMALL, propagate_in_depth=depth)
    params, ids, rng = random_params(config, seed), random_ids(seed), np.random.default_rng(seed)
    T = SMALL.n_positions
    kept = rng.random((config.n_layer, len(ids), T, T)) < 0.3
    kept[:, :, :, 2] = True  # a whole column: token 2 is safe for good
    got = forward(params, ids, config, policy=policy, threshold=1.0 if policy.learned else 0.0, kept=kept).interaction
    before = np.concatenate([np.ones_like(got[:, :, :1]), got[:, :, :-1]], axis=2)
    np.testing.assert_array_equal(got[kept], before[kept])
    assert (got[:, :, :, 2] == 1).all()
    if not policy.learned and policy.heavy is None:
        stays = np.logical_and.accumulate(by_position(policy, T) | kept, axis=2)
        np.testing.assert_array_equal(got, stays)


@pytest.mark.parametrize("policy", [policies.learned, policies.window(2), policies.heavy_hitters(1, 2)], ids=str)
@pytest.mark.parametrize("alpha", [2.0, math.inf])
def test_all_kept_is_dense(policy, alpha):
    params, ids = random_params(SMALL, 0), random_ids(0)
    result = forward(params, ids, SMALL, alpha, policy, kept=True)
    assert (result.interaction == 1).all()
    np.testing.assert_array_equal(result.logits, forward(params, ids, SMALL, policy=policies.dense).logits)
    none = forward(params, ids, SMALL, alpha, policy, kept=np.zeros((1, 1), bool))
    np.testing.assert_array_equal(none.logits, forward(params, ids, SMALL, alpha, policy).logits)


@pytest.mark.parametrize("kept", [1, np.ones((9, 9)), np.ones((4, 1, 9, 9), bool), np.ones(8, bool), "yes"])
def test_what_is_kept_must_be_booleans_that_fit(kept):
    with pytest.raises(ValueError, match=r"kept must be booleans that broadcast to \[3, 2, 9, 9\], not "):
        forward(random_params(SMALL, 0), random_ids(0), SMALL, kept=kept)
