"""Steering gamma: by hand, and on a model of what gates do."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcp_ref.training.steering import BOUND, FALL, Steering, steer

LEVELS = st.floats(-BOUND, BOUND)


def test_nothing_is_wrong_so_gamma_stays_as_it_was():
    after, factor = steer(Steering(), 1.0, 0.2, 0, 100)  # at first all is kept, and wanted
    assert after == Steering() and factor == pytest.approx(1)


def test_by_hand():
    after, factor = steer(Steering(0.5, 0.3), 0.2, 0.4, 99, 100)
    error = math.log((0.9 * 0.5 + 0.1 * 0.2) / 0.4)
    assert after == pytest.approx((0.47, 0.3 + 0.1 * error))
    assert factor == pytest.approx(math.sinh(after.level + 4 * error))


def test_the_share_wanted_falls_to_the_target_and_stays():
    wanted = [0.2 ** (step / (FALL * 100)) for step in (0, 30, 60)] + [0.2]
    for step, share in zip((0, 30, 60, 100), wanted, strict=True):
        after, factor = steer(Steering(share, 0.5), share, 0.2, step, 101)
        assert after.level == pytest.approx(0.5) and factor == pytest.approx(math.sinh(0.5))


@given(st.floats(0, 1), LEVELS, st.floats(0, 1), st.floats(0.01, 0.99), st.integers(0, 50))
def test_gamma_is_bounded_and_rises_with_the_share_kept(smooth, level, kept, target, step):
    after, factor = steer(Steering(smooth, level), kept, target, step, 50)
    assert abs(factor) <= 100.001 and abs(after.level) <= BOUND
    assert steer(Steering(smooth, level), min(1, kept + 0.1), target, step, 50)[1] >= factor


@pytest.mark.parametrize("target", [0.5, 1e-2, 1e-3, 1e-4, 1e-9, 1e-300, 5e-324])
def test_it_pushes_towards_the_target_however_small_that_is(target):
    """With less kept than wanted gamma falls, with more it rises; at the end, where the target itself is wanted."""
    for kept, sign in ((0.0, -1), (target / 2, -1), (target * 2, 1), (1.0, 1)):
        after, factor = steer(Steering(kept, 0.0), kept, target, 99, 100)
        assert math.copysign(1, after.level) == math.copysign(1, factor) == sign
        assert math.isfinite(factor) and abs(after.level) <= BOUND
    assert steer(Steering(target, 0.5), target, target, 99, 100)[0].level == pytest.approx(0.5)


@pytest.mark.parametrize("target", [0.5, 0.2, 0.1])
@pytest.mark.parametrize("strength", [3.0, 10.0, 30.0])
@pytest.mark.parametrize("steps", [100, 300, 3000])
def test_it_lands_where_the_share_follows_gamma_late(target, strength, steps):
    """log share moves towards a level that falls with gamma, -1.5 at gamma = 0, over a twentieth of the run."""
    state, log_share = Steering(), 0.0
    for step in range(steps):
        state, factor = steer(state, math.exp(log_share), target, step, steps)
        log_share = min(0.0, log_share + (-1.5 - strength * 0.1 * factor - log_share) * 20 / steps)
    assert math.exp(log_share) == pytest.approx(target, rel=0.2)
