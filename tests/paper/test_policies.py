"""Each rule against a definition of its own; what is refused, and in which words."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from cache_tools import FORMS, any_policies
from hypothesis import given
from hypothesis import strategies as st
from policy_tools import by_position, heavy_by_definition, pairs

from dcp_ref import policies
from dcp_ref.config import Config
from dcp_ref.policies import Policy, budget, heavy_hitters, parse, sinks, strided, window

HEADER = Path(__file__).parents[2] / "csrc/dcp.h"
PLAIN, PRUNED = Config(), Config(int_n_embd=4)
SEEDS = st.integers(0, 2**32 - 1)


def test_c_and_python_state_the_rule_in_the_same_words():
    header, formula = HEADER.read_text(encoding="utf-8"), policies.__doc__.split("\n\n")[2]
    assert "stride divides j" in formula
    for line in formula.splitlines():
        assert line in header


@given(T=st.integers(1, 12), w=st.integers(1, 13), n=st.integers(0, 13))
def test_rules_by_position(T, w, n):
    for policy, stays in [
        (policies.dense, lambda i, j: True),
        (policies.learned, lambda i, j: True),  # by its scores only
        (window(w), lambda i, j: j in range(i + 1)[-w:]),
        (sinks(n, w), lambda i, j: j in range(n) or j in range(i + 1)[-w:]),
        (strided(w, n), lambda i, j: (n > 0 and j in range(0, T, n)) or j in range(i + 1)[-w:]),
    ]:
        np.testing.assert_array_equal(by_position(policy, T), pairs(T, stays), str(policy))


@given(T=st.integers(1, 12), n=st.integers(0, 4), w=st.integers(1, 4), soft=st.booleans(), seed=SEEDS)
def test_heavy_hitters_by_brute_force(T, n, w, soft, seed):
    rng = np.random.default_rng(seed)
    q, k = rng.normal(size=(2, 2, 3, T, 4)) * 2  # [B, H, T, D]
    handed = np.where(rng.random((2, T, T)) < 0.2, -np.inf, -rng.random((2, T, T)) * soft)
    handed = np.where(np.tri(T, k=-1, dtype=bool), handed, 0).cumsum(axis=1)  # for good, and never the token itself
    masks = heavy_hitters(n, w).log_mask(q, k, handed, 0.7)
    assert masks.dtype == np.float64
    for b in range(2):
        live, own = heavy_by_definition(n, w, q[b], k[b], handed[b], 0.7)
        np.testing.assert_array_equal(masks[b] == -np.inf, own)
        np.testing.assert_array_equal((masks[b] + handed[b] > -np.inf) & np.tri(T, dtype=bool), live)
        far = live & (np.subtract.outer(np.arange(T), np.arange(T)) >= w)
        assert (far.sum(axis=1) <= n).all()


@given(T=st.integers(1, 12), n=st.integers(1, 4), delay=st.integers(0, 3), seed=SEEDS)
def test_a_budget_by_brute_force(T, n, delay, seed):
    """Scores are small integers, so that ties are many; what else drops takes part of the budget's work."""
    rng = np.random.default_rng(seed)
    s, kept = rng.integers(-3, 4, (1, T, T)).astype(float), rng.random((1, T, T)) < 0.1
    handed = np.where((rng.random((1, T, T)) < 0.2) & np.tri(T, k=-1, dtype=bool), -np.inf, 0).cumsum(axis=1)
    qk = np.zeros((1, 1, T, 1))
    [got] = budget(n).log_mask(qk, qk, handed, 1.0, kept, s, delay) == 0
    live = np.ones((T, T), bool)
    for i in range(T):
        live[i] = live[i - 1] if i else live[i]
        there = [j for j in range(i - delay) if live[i, j] and handed[0, i, j] == 0 and not kept[0, i, j]]
        while len(there) > n:
            there.remove(gone := min(there, key=lambda j: (s[0, i, j], j)))
            live[i, gone] = False
    np.testing.assert_array_equal(got, live)


def test_of_two_heavy_hitters_the_later_stays():
    policy = heavy_hitters(1, 1)
    attention = np.array([1, 1, 1], np.float32)
    assert policy.drops(3, np.array([0, 1, 2]), attention).tolist() == [True, True, False]
    assert policy.drops(9, np.array([3, 5, 8]), np.array([2, 2, 1])).tolist() == [True, False, True]


def test_attention_that_decides_counts_every_head_and_the_token_itself():
    # Rows: 0 sees itself (2 heads: 2.0). Row 1 gives all to 1; row 2 all to 1 in one head, to 2 in the other.
    k = np.array([[[0], [1], [0.5]], [[0], [1], [2]]]) * 1e4
    k = np.pad(k, [(0, 0), (0, 1), (0, 0)])[None]  # [1, 2, 4, 1]
    live = heavy_hitters(1, 1).log_mask(np.ones_like(k), k, 0.0, 1.0)[0] == 0
    assert live[1].tolist() == [True] * 4 and live[2].tolist() == [False, True, True, True]  # 0 and 1 tie at 2: later
    assert live[3].tolist() == [False, True, False, True]  # 1 has 2 + 1, 2 has 1


@given(policy=any_policies(), T=st.integers(1, 12), seed=SEEDS)
def test_dropped_is_dropped_for_good(policy, T, seed):
    q, k = np.random.default_rng(seed).normal(size=(2, 1, 2, T, 2)).astype(np.float32)
    [mask] = policy.log_mask(q, k, 0.0, 1.0, s=q[:, 0] @ k[:, 0].swapaxes(-1, -2))
    assert (mask[1:] <= mask[:-1]).all()
    assert (mask[~np.tri(T, k=-1, dtype=bool)] == 0).all()


@given(T=st.integers(1, 10), w=st.integers(1, 4), n=st.integers(0, 3), seed=SEEDS)
def test_rules_that_reduce_to_others(T, w, n, seed):
    q, k = np.random.default_rng(seed).normal(size=(2, 1, 2, T, 2)).astype(np.float32)

    def mask(policy):
        return policy.log_mask(q, k, 0.0, 1.0).tolist()

    assert mask(heavy_hitters(0, w)) == mask(sinks(0, w)) == mask(strided(w, 0)) == mask(window(w))
    everything = mask(policies.dense)
    assert mask(heavy_hitters(T, w)) == mask(sinks(T, w)) == mask(strided(w, 1)) == mask(window(T)) == everything
    both = Policy("sinks and heavy hitters", window=w, first=n, heavy=n)  # what a rule keeps is no candidate
    assert (np.array(mask(both)) == 0)[0, :, :n].all()
    assert (np.array(mask(both)) >= np.array(mask(sinks(n, w)))).all()


@given(any_policies(FORMS))
def test_parse_gives_back_what_str_shows(policy):
    assert parse(str(policy)) == policy


def test_forms():
    assert parse("window:128") == Policy("window:128", window=128)
    assert parse("strided:128,64") == Policy("strided:128,64", window=128, stride=64)
    assert parse("sinks:4,252") == Policy("sinks:4,252", first=4, window=252)
    assert parse("heavy_hitters:64,32") == Policy("heavy_hitters:64,32", heavy=64, window=32)
    assert parse("learned:9") == Policy("learned:9", learned=True, budget=9)
    assert parse("learned") is policies.learned and parse("dense") is policies.dense


@pytest.mark.parametrize("text", [
    "", "windows:3", "window", "window:", "window:-1", "window:1,2", "window: 1", "window:1_0", "window:٣",
    "window:1\n", "window:" + "9" * 5000, "sinks:4", "sinks:4,", "dense:", "Dense", "learned:", "learned:-1", "dense:1",
    None, 3])
def test_parse_lists_the_forms(text):
    with pytest.raises(ValueError, match=r"is not of one of these forms.*: learned, dense, window:W, .*heavy_hitters"):
        parse(text)


@pytest.mark.parametrize("field", ["window", "first", "stride", "heavy"])
@pytest.mark.parametrize("value", [-1, True, 1.0, "1", 2**31, np.int64(1)])
def test_a_field_that_is_no_count(field, value):
    with pytest.raises(ValueError, match=f"policy mine: {field} must be an integer from . to"):
        Policy("mine", **{"window": 1, field: value})


@pytest.mark.parametrize(("make", "field"), [
    (lambda: window(0), "window"), (lambda: parse("window:0"), "window"), (lambda: sinks(None, 3), "first"),
    (lambda: strided(3, None), "stride"), (lambda: Policy("x", learned=1), "learned"),
    (lambda: heavy_hitters(-1, 3), "heavy"), (lambda: Policy("x", heavy=3), "window"),
    (lambda: Policy("x", learned=True, first=3), "window"), (lambda: Policy("x", stride=3), "window"),
    (lambda: budget(0), "budget"), (lambda: parse("learned:0"), "budget"), (lambda: budget(1.5), "budget"),
    (lambda: Policy("x", budget=3), "learned"), (lambda: Policy("x", learned=True, window=3, budget=3), "learned"),
])
def test_impossible_policies(make, field):
    with pytest.raises(ValueError, match=rf"policy .*: {field} must be"):
        make()


def test_policies_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        policies.dense.window = 3


def test_for_model():
    assert policies.for_model(PLAIN, None) is policies.dense
    assert policies.for_model(PRUNED, None) is policies.learned
    for policy in (policies.dense, window(3)):
        assert policies.for_model(PRUNED, policy) is policies.for_model(PLAIN, policy) is policy
        assert policy.rank(PRUNED) == policy.rank(PLAIN) == 0
    assert policies.learned.rank(PRUNED) == 4
    with pytest.raises(ValueError, match=r"policy learned: this model has no interaction weights.*choose another"):
        policies.for_model(PLAIN, policies.learned)
    for wrong in ("window:3", 3, Policy):
        with pytest.raises(TypeError, match=r"policy must be None or a Policy, not .*policies\.parse"):
            policies.for_model(PRUNED, wrong)
