"""The arguments of both caches: a wrong one is refused by name, before anything changes."""

import dataclasses

import numpy as np
import pytest
from cache_tools import CACHES

from dcp_ref.config import Config

CONFIG = Config(vocab_size=1, n_positions=9, n_embd=4, n_layer=2, n_head=2, int_n_embd=4)
SHAPE = {"q": (3, 4), "k": (3, 4), "v": (3, 4), "q_int": (3, 4), "k_int": (3, 4)}
each_cache = pytest.mark.parametrize("make", CACHES)


def arguments(**changes):
    """A step of three tokens: two of sequence 0, one of sequence 1."""
    arrays = {name: np.ones(shape, np.float32) for name, shape in SHAPE.items()}
    inherited = np.array([[0, 5], [2, 0]], np.int32)
    return {"layer": 0, "sequences": [0, 1], "starts": [0, 0], "counts": [2, 1], **arrays, "beta": 1.0,
            "inherited": inherited, **changes}


def two_sequences(make, **options):
    cache = make(CONFIG, page_slots=2, **options)
    assert [cache.new_sequence(), cache.new_sequence()] == [0, 1]
    return cache


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


WRONG = [
    *[(name, wrong, TypeError, f"{name} must be a float32 array")
      for name in SHAPE for wrong in (None, [[1.0]], zeros(3, 4, dtype=float), zeros(3, 4, dtype=">f4"), "x")],
    *[(name, zeros(*shape), ValueError, f"{name} must have shape")
      for name in SHAPE for shape in ((4, 4), (3, 5), (12,), (3, 4, 1), ())],
    ("layer", 2, ValueError, "layer must be"), ("layer", -1, ValueError, "layer must be"),
    ("layer", 0.0, TypeError, "integer"), ("layer", 2**70, ValueError, "layer must be"),
    ("sequences", [0, 2], ValueError, "sequence 2 is unknown"), ("sequences", [1, 1], ValueError, "sequence 1 appears"),
    ("sequences", [0], ValueError, "must be"), ("sequences", [0, -1], ValueError, "sequence -1"),
    ("sequences", 0, TypeError, "iterable"), ("sequences", [0, [1]], ValueError, "is unknown or was released"),
    ("starts", [1, 0], ValueError, "starts must be"), ("starts", [0, -1], ValueError, "starts must be"),
    ("starts", [0], ValueError, "starts must be"), ("starts", [0, 0.5], TypeError, "integer"),
    ("counts", [2, -1], ValueError, "counts must be"), ("counts", [2, 1, 0], ValueError, "counts must be"),
    ("counts", [3, 0.0], TypeError, "integer"), ("counts", [10, 1], ValueError, "n_positions = 9"),
    ("counts", [2**70, 1], ValueError, "n_positions = 9"), ("counts", [2, 2], ValueError, "shape"),
    ("beta", None, TypeError, "float"), ("beta", "x", ValueError, "float"),
    ("inherited", zeros(1, 2), TypeError, "inherited must be an int32"),
    ("inherited", [[0, 1]], TypeError, "inherited must be an int32"),
    ("inherited", zeros(2, dtype=np.int32), ValueError, "inherited must have shape"),
    ("inherited", zeros(2, 3, dtype=np.int32), ValueError, "inherited must have shape"),
    ("inherited", np.array([[1, 0], [0, 0]], np.int32), ValueError, "inherited: rows"),
    ("inherited", np.array([[-1, 0]], np.int32), ValueError, "inherited: rows"),
    ("inherited", np.array([[3, 0]], np.int32), ValueError, "inherited: rows"),
]


@each_cache
@pytest.mark.parametrize(("name", "wrong", "error", "message"), WRONG)
def test_a_wrong_argument_is_named_and_changes_nothing(make, name, wrong, error, message):
    cache = two_sequences(make)
    cache.reserve([0, 1], [2, 1])
    before = cache.stats()
    with pytest.raises(error, match=message):
        cache.step(**arguments(**{name: wrong}))
    assert cache.stats() == before
    out, dropped = cache.step(**arguments())
    assert out.shape == (3, 4) and dropped.dtype == np.int32 and dropped.shape == (0, 2)


@each_cache
@pytest.mark.parametrize("changes", [{"starts": [0, 0.0]}, {"starts": [False, 0]}, {"counts": [2, True]},
                                     {"counts": [2.0, 1]}, {"sequences": [0, True]}, {"sequences": [0.0, 1]}])
def test_numbers_that_equal_the_right_ones_are_refused_or_taken_for_them(make, changes):
    """Whichever: integers that the cache made itself are what is counted with."""
    cache, plain = two_sequences(make), two_sequences(make)
    for each in (cache, plain):
        each.reserve([0, 1], [2, 1])
    expected, _ = plain.step(**arguments())
    try:
        out, _ = cache.step(**arguments(**changes))
    except (TypeError, ValueError):
        assert cache.stats().live_tokens == 0
        out, _ = cache.step(**arguments())
    np.testing.assert_array_equal(out, expected)
    assert cache.stats() == plain.stats()


@each_cache
def test_views_of_wider_arrays_are_taken(make):
    q, k, v = np.split(np.arange(36, dtype=np.float32).reshape(3, 12), 3, axis=1)
    outs = []
    for convert in (lambda x: x, np.ascontiguousarray, np.asfortranarray):
        cache = two_sequences(make)
        cache.reserve([0, 1], [2, 1])
        outs.append(cache.step(**arguments(q=convert(q), k=convert(k), v=convert(v)))[0])
    np.testing.assert_array_equal(outs[0], outs[1])
    np.testing.assert_array_equal(outs[0], outs[2])


@each_cache
def test_a_step_needs_its_reserve(make):
    cache = make(dataclasses.replace(CONFIG, n_layer=1), page_slots=2)
    sequences = [cache.new_sequence(), cache.new_sequence()]
    cache.reserve(sequences[:1], [2])
    before = cache.stats()
    with pytest.raises(RuntimeError, match="reserve"):
        cache.step(**arguments())
    assert cache.stats() == before
    cache.reserve(sequences, [2, 1])
    cache.step(**arguments())


@each_cache
@pytest.mark.parametrize(("sequences", "counts", "message"), [
    ([0, 2], [1, 1], "sequence 2 is unknown"), ([0, 0], [1, 1], "sequence 0 appears twice"),
    ([0], [10], "n_positions = 9"), ([0], [-1], "counts"), ([0], [1, 1], "counts"), ([0], [2**80], "n_positions")])
def test_reserve_refuses(make, sequences, counts, message):
    cache = two_sequences(make)
    with pytest.raises(ValueError, match=message):
        cache.reserve(sequences, counts)
    assert cache.stats().bytes_reserved == 0
    cache.reserve([], [])
    cache.reserve([0, 1], [0, 0])
    assert cache.stats().bytes_reserved == 0


@each_cache
def test_handles(make):
    cache = two_sequences(make)
    cache.release(0)
    for use in (cache.release, lambda h: cache.live_positions(h, 0), lambda h: cache.reserve([h], [1])):
        for handle in (0, 7, None, "x"):
            with pytest.raises(ValueError, match=f"sequence {handle!r} is unknown or was released"):
                use(handle)
    assert cache.new_sequence() == 2
    with pytest.raises(ValueError, match="layer must be"):
        cache.live_positions(2, 2)


@each_cache
def test_a_plain_model_has_no_interaction_rows(make):
    cache = make(Config(vocab_size=1, n_positions=9, n_embd=4, n_layer=1, n_head=2))
    sequence = cache.new_sequence()
    cache.reserve([sequence], [3])
    rows = {"q": zeros(3, 4), "k": zeros(3, 4), "v": zeros(3, 4)}
    with pytest.raises(ValueError, match="q_int and k_int must be None"):
        cache.step(0, [sequence], [0], [3], **rows, q_int=zeros(3, 4), k_int=zeros(3, 4))
    _, dropped = cache.step(0, [sequence], [0], [3], **rows, beta=-1.0)
    assert dropped.tolist() == [] and cache.live_positions(sequence, 0).tolist() == [0, 1, 2]


@each_cache
@pytest.mark.parametrize("page_slots", [0, 33, -1])
def test_page_slots(make, page_slots):
    with pytest.raises(ValueError, match="page_slots"):
        make(CONFIG, page_slots)


@each_cache
def test_max_bytes(make):
    make(CONFIG, max_bytes=2**80)
    with pytest.raises(ValueError, match="max_bytes"):
        make(CONFIG, max_bytes=0)
