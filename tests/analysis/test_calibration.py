"""Sizes that keep what is asked: the share predicted is the share measured."""

import dataclasses

import numpy as np
import pytest
from models import moderate_model, random_model
from test_perplexity import MODEL, TOKENS

from dcp_ref import Engine, forward, policies
from dcp_ref.analysis import calibration
from dcp_ref.analysis.perplexity import evaluate, rows_at


@pytest.mark.parametrize("stride", [40, 15])
@pytest.mark.parametrize("policy", ["dense", "window:9", "window:1", "window:50", "strided:3,7", "sinks:2,9",
                                    "heavy_hitters:4,5", "heavy_hitters:0,5", "heavy_hitters:3,1"])
def test_the_share_that_is_measured(policy, stride):
    rule = policies.parse(policy)
    found = evaluate(Engine(MODEL, policy=rule), TOKENS, 40, stride)
    assert calibration.share_of(rule, rows_at(len(TOKENS), 40, stride)) == pytest.approx(found.share_kept, rel=1e-12)


@pytest.mark.parametrize("rule", calibration.RULES)
def test_no_size_is_nearer(rule):
    rows = rows_at(1000, 200, 200)
    for share in (0.5, 0.2, 0.1, 0.05):
        found = calibration.sized(rule, share, rows)
        assert len(found) == 1 if rule == "window" else len(found) >= (4 if share >= 0.1 else 2)
        missed = [abs(calibration.share_of(policy, rows) - share) for policy in found]
        assert max(missed) < 0.03
        for size in range(1, 201):
            policy = calibration.RULES[rule](max(1, size // 8), max(1, size - size // 8), 200)
            assert abs(calibration.share_of(policy, rows) - share) >= min(missed)


def test_the_parts():
    assert calibration.RULES["strided"](10, 7, 100) == policies.strided(7, 10)
    assert calibration.RULES["strided"](9, 7, 100) == policies.strided(7, 12)
    assert calibration.RULES["heavy_hitters"](4, 5, 100) == policies.heavy_hitters(4, 5)
    assert calibration.RULES["sinks"](4, 9, 100) == policies.sinks(4, 9)
    assert calibration.RULES["window"](4, 5, 100) == policies.window(9)
    rows = rows_at(1000, 200, 200)
    assert [str(policy) for policy in calibration.sized("strided", 0.2, rows)] == [
        "strided:21,200", "strided:20,67", "strided:19,34", "strided:15,14", "strided:9,8"]
    assert [str(policy) for policy in calibration.sized("heavy_hitters", 0.2, rows)] == [
        "heavy_hitters:1,21", "heavy_hitters:3,19", "heavy_hitters:6,16", "heavy_hitters:11,11", "heavy_hitters:16,6"]


@pytest.mark.parametrize("propagate", [False, True])
def test_thresholds(propagate):
    model = moderate_model(propagate_in_depth=propagate)
    ids, shares = np.random.default_rng(1).integers(0, 300, (2, 100)), (1.0, 0.5, 0.2, 0.05)
    found = calibration.thresholds(model, ids, shares)
    assert found == sorted(found)
    for threshold, share in zip(found, shares, strict=True):
        mask = forward(model.params, ids, model.config, threshold=threshold).interaction
        mask = np.cumprod(mask, axis=0) if propagate else mask
        assert mask[..., np.tri(100, k=-1, dtype=bool)].mean() == pytest.approx(share, rel=calibration.CLOSE)


def test_a_share_that_no_threshold_has():
    model = random_model(moderate_model().config, 0, 0.0)
    for name in model.params:
        if "int" in name:
            model.params[name] = np.zeros_like(model.params[name])  # every score is 0: all stays, or nothing
    [low, half] = calibration.thresholds(model, np.zeros((1, 20), int), (1.0, 0.5))
    assert low < 0 and abs(half) < 0.01


@pytest.mark.parametrize("propagate", [False, True])
def test_a_card(propagate):
    """Through the cache, each threshold keeps its share of windows of n_positions tokens."""
    model = moderate_model(propagate_in_depth=propagate)
    tokens = np.random.default_rng(1).integers(0, 300, 500)
    found = calibration.card(model, tokens, (0.1, 0.6, 0.3), windows=3)
    assert [one.share for one in found] == [0.6, 0.3, 0.1] and all(one.reached for one in found)
    assert [one.threshold for one in found] == sorted(one.threshold for one in found)
    for one in found:
        assert one.kept == pytest.approx(one.share, rel=2 * calibration.CARD_CLOSE)
        result = evaluate(Engine(model, threshold=one.threshold), tokens, starts=[0, 185, 371])
        assert (one.kept, one.perplexity) == (result.share_kept, result.perplexity)
    config = dataclasses.replace(model.config, kept_thresholds=tuple(one[:2] for one in found))
    between = evaluate(Engine(model._replace(config=config), kept=0.2), tokens, starts=[0, 185, 371])
    assert between.share_kept == pytest.approx(0.2, rel=0.2)


def test_a_share_that_is_not_reached():
    model = random_model(moderate_model().config, 0, 0.0)
    for name in model.params:
        if "int" in name:
            model.params[name] = np.zeros_like(model.params[name])
    [half] = calibration.card(model, np.zeros(200, int), (0.5,), windows=1)
    assert not half.reached and half.kept in (0, 1)


@pytest.mark.parametrize(("changes", "words"), [
    ({"shares": ()}, r"shares must be above 0 and up to 1, not \[\]"),
    ({"shares": (0.5, 0.0)}, "shares must be above 0 and up to 1"),
    ({"shares": (1.5,)}, "shares must be above 0 and up to 1"),
    ({"shares": (float("nan"),)}, "shares must be above 0 and up to 1"),
    ({"windows": 0}, "windows must be 1 or more, not 0"),
    ({"tokens": np.zeros(128, int)}, "the text has 128 tokens, but a window and its last target need 129"),
    ({"model": moderate_model(int_n_embd=None)}, "policy learned: this model has no interaction weights"),
])
def test_what_a_card_cannot_be_made_of(changes, words):
    with pytest.raises(ValueError, match=words):
        calibration.card(**{"model": moderate_model(), "tokens": np.zeros(129, int)} | changes)
