"""Sampling against the exact definition: who may be drawn, and which random number draws whom."""

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dcp_ref.runtime.sampling import Sampling, row_stream
from dcp_ref.training import data

LAST = 1 - 2**-53  # the largest random number
LOGITS = np.array([0.0, 2.0, -1.0, 2.0, 1.0], np.float32)


class Stub:
    """A generator with one number in it."""

    def __init__(self, u):
        self.numbers = [u]

    def random(self):
        return self.numbers.pop()


def distribution(logits, temperature, top_k, top_p):
    """Ids that may be drawn, likeliest first, with their probabilities: the definition, in plain Python."""
    ids = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:top_k]
    weights = [math.exp((float(logits[i]) - float(logits[ids[0]])) / temperature) for i in ids]
    n = next(n for n in range(1, len(ids) + 1) if sum(weights[:n]) >= top_p * sum(weights))
    assume(all(abs(sum(weights[:m]) - top_p * sum(weights)) > 1e-9 for m in range(len(ids))))
    return ids[:n], [w / sum(weights[:n]) for w in weights[:n]]


@given(
    logits=st.lists(st.integers(-20, 20), min_size=1, max_size=12),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 3.0]),
    top_k=st.none() | st.integers(1, 13),
    top_p=st.sampled_from([0.01, 0.3, 0.77, 0.95, 0.999]),
)
def test_every_number_draws_the_token_whose_share_it_falls_in(logits, temperature, top_k, top_p):
    logits = np.array(logits, np.float32) / 4  # ties among them
    ids, shares = distribution(logits, temperature, top_k, top_p)
    sampling, below = Sampling(temperature, top_k, top_p), 0.0
    for i, share in zip(ids, shares, strict=True):
        for u in (below + 0.01 * share, below + 0.5 * share, below + 0.99 * share):
            assert sampling.draw(logits, Stub(u)) == i
        below += share
    assert sampling.draw(logits, Stub(0.0)) == ids[0]
    assert sampling.draw(logits, Stub(LAST)) == ids[-1]


@pytest.mark.parametrize(
    ("settings", "drawn"),
    [
        ({"top_k": 1}, [1]),
        ({"top_k": 2}, [1, 3]),
        ({"top_k": 4}, [1, 3, 4, 0]),
        ({"top_k": 99}, [1, 3, 4, 0, 2]),
        ({"top_p": 1e-9}, [1]),
        ({"top_p": 1.0}, [1, 3, 4, 0, 2]),
        ({"top_k": 2, "top_p": 0.5}, [1]),  # top_p counts within the k, where each of the two has a half
        ({"top_k": 2, "top_p": 0.5001}, [1, 3]),
    ],
)
def test_who_may_be_drawn(settings, drawn):
    sampling = Sampling(**settings)
    assert [*dict.fromkeys(sampling.draw(LOGITS, Stub(u)) for u in np.linspace(0, LAST, 2000))] == drawn


@pytest.mark.parametrize("n", range(1, 9))
def test_top_p_takes_the_fewest_that_reach_it(n):
    equal = np.zeros(8, np.float32)
    assert Sampling(top_p=n / 8).draw(equal, Stub(LAST)) == n - 1
    assert Sampling(top_p=n / 8 - 1e-9).draw(equal, Stub(LAST)) == n - 1
    assert Sampling(top_p=min(n / 8 + 1e-9, 1)).draw(equal, Stub(LAST)) == min(n, 7)


def test_the_first_of_many_equals_come_first():
    equal, sampling = np.zeros(500, np.float32), Sampling(top_k=10)
    assert [sampling.draw(equal, Stub((i + 0.5) / 10)) for i in range(10)] == list(range(10))


def test_greedy_takes_the_first_of_the_largest_and_no_random_number():
    assert Sampling(temperature=0).draw(LOGITS, None) == 1
    assert Sampling(temperature=0, top_k=3, top_p=0.5).draw(LOGITS[::-1], None) == 1


@pytest.mark.parametrize("temperature", [0, 1e-320, 1e-3, 1.0])
def test_huge_logits_and_ruled_out_tokens(temperature):
    sampling = Sampling(temperature)
    for u in (0.0, 0.5, LAST):
        assert sampling.draw(np.array([-3e38, 3e38, -np.inf, 1], np.float32), Stub(u)) == 1
    ruled_out = np.array([-np.inf, 5, -np.inf, 5, -np.inf])
    expected = {1} if temperature == 0 else {1, 3}
    assert {sampling.draw(ruled_out, Stub(u)) for u in (0.0, 0.4999, 0.5, LAST)} == expected


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0, 1.0])
def test_logits_that_say_nothing_are_refused(bad, temperature):
    logits = np.full(3, -np.inf)
    logits[1] = bad
    if np.isnan(bad):
        logits[0] = 1.0
    with pytest.raises(ValueError, match=r"logits: the largest is (nan|inf|-inf)"):
        Sampling(temperature).draw(logits, Stub(0.5))


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", v) for v in (-0.1, math.nan, math.inf, "1", None)]
    + [("top_k", v) for v in (0, -1, 2.0, "3")]
    + [("top_p", v) for v in (0, -0.5, 1.01, math.nan, "0.9", None)],
)
def test_impossible_settings_are_named(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be .*{value!r}$"):
        Sampling(**{name: value})


def test_numpy_numbers_are_numbers():
    sampling = Sampling(np.float32(0.5), np.int64(2), np.float64(0.9))
    assert sampling.draw(LOGITS, Stub(0.0)) == 1


def test_every_row_has_its_own_stream():
    expected = np.random.default_rng(np.random.SeedSequence([3, 5])).random(4)
    np.testing.assert_array_equal(row_stream(3, 5).random(4), expected)
    assert len({row_stream(seed, row).random() for seed in range(5) for row in range(5)}) == 25


def test_no_two_seeds_share_a_stream_however_large_they_are():
    """A seed's 32-bit words, the row, and the zeros that fill up to four: none is taken for another."""
    words = [0, 1, 5, 2**32 - 1]
    seeds = {low + (high << bits) for bits in (32, 64, 96, 128, 160) for high in words for low in words}
    pairs = [(seed, row) for seed in seeds for row in (0, 1, 5, 2**32 - 1)]
    assert len({row_stream(seed, row).random() for seed, row in pairs}) == len(pairs)


def test_the_batches_of_large_seeds_differ_too():
    tokens = np.arange(10**6)
    starts = {seed: [tuple(data.batch(tokens, 4, 2, seed, step)[0][:, 0]) for step in range(3)]
              for seed in (5, 2**32 + 5)}
    assert len({*starts[5], *starts[2**32 + 5]}) == 6
    old = np.random.default_rng([5, 2]).integers(0, 10**6 - 2, 4)  # as it always was
    assert starts[5][2] == tuple(old)
