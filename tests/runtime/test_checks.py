"""The arguments of both caches: a wrong one is refused by name, before anything changes."""

import dataclasses

import numpy as np
import pytest
from cache_tools import CACHES, with_pages

from dcp_ref import native
from dcp_ref.config import Config
from dcp_ref.native.cache import NativeCache

CONFIG = Config(vocab_size=1, n_positions=9, n_embd=4, n_layer=2, n_head=2, int_n_embd=4)
SHAPE = {"q": (3, 4), "k": (3, 4), "v": (3, 4), "q_int": (3, 4), "k_int": (3, 4)}
each_cache = pytest.mark.parametrize("make", CACHES)


def arguments(**changes):
    """A step of three tokens: two of sequence 0, one of sequence 1."""
    arrays = {name: np.ones(shape, np.float32) for name, shape in SHAPE.items()}
    inherited = np.array([[0, 5], [2, 0]], np.int32)
    return {"layer": 0, **arrays, "beta": 1.0, "inherited": inherited, **changes}


def two_sequences(make, **options):
    cache = with_pages(make, CONFIG, 2, **options)
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
    batch = cache.reserve([0, 1], [2, 1])
    before = cache.stats()
    with pytest.raises(error, match=message):
        cache.step(batch=batch, **arguments(**{name: wrong}))
    assert cache.stats() == before
    out, dropped = cache.step(batch=batch, **arguments())
    assert out.shape == (3, 4) and dropped.dtype == np.int32 and dropped.shape == (0, 2)


@each_cache
def test_numbers_of_other_kinds_that_are_integers(make):
    cache = two_sequences(make)
    batch = cache.reserve(np.array([0, 1]), np.array([2, 1], np.uint8))
    cache.step(batch=batch, **arguments(layer=np.int64(0)))
    assert cache.live_counts(np.array([0, 1]))[0].tolist() == [2, 1]
    for handles in ([True], [0.0], ["0"], [[0]], [None]):
        with pytest.raises(ValueError, match="is unknown or was released"):
            cache.reserve(handles, [1])


@each_cache
def test_views_of_wider_arrays_are_taken(make):
    q, k, v = np.split(np.arange(36, dtype=np.float32).reshape(3, 12), 3, axis=1)
    outs = []
    for convert in (lambda x: x, np.ascontiguousarray, np.asfortranarray):
        cache = two_sequences(make)
        batch = cache.reserve([0, 1], [2, 1])
        outs.append(cache.step(batch=batch, **arguments(q=convert(q), k=convert(k), v=convert(v)))[0])
    np.testing.assert_array_equal(outs[0], outs[1])
    np.testing.assert_array_equal(outs[0], outs[2])


@each_cache
@pytest.mark.parametrize("meanwhile", ["feed", "release"])
def test_a_batch_that_is_no_longer_valid_says_so(make, meanwhile):
    cache = with_pages(make, dataclasses.replace(CONFIG, n_layer=1), 2)
    sequences = [cache.new_sequence(), cache.new_sequence()]
    old = cache.reserve(sequences, [2, 1])
    if meanwhile == "feed":
        cache.step(batch=cache.reserve(sequences, [2, 1]), **arguments(inherited=None))
    else:
        cache.release(sequences[1])
    before = cache.stats()
    with pytest.raises(RuntimeError, match="the batch is no longer valid"):
        cache.step(batch=old, **arguments(inherited=None))
    assert cache.stats() == before


@each_cache
@pytest.mark.parametrize(("sequences", "counts", "message"), [
    ([0, 2], [1, 1], "sequence 2 is unknown"), ([0, 0], [1, 1], "sequence 0 appears twice"),
    ([0], [10], r"position 9 is not below n_positions \(9\)"), ([0], [-1], "counts"), ([0], [1, 1], "counts"),
    ([0], [2**80], "n_positions")])
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
    batch = cache.reserve([sequence], [3])
    rows = {"q": zeros(3, 4), "k": zeros(3, 4), "v": zeros(3, 4)}
    with pytest.raises(ValueError, match="q_int and k_int must be None"):
        cache.step(0, batch, **rows, q_int=zeros(3, 4), k_int=zeros(3, 4))
    _, dropped = cache.step(0, batch, **rows, beta=-1.0)
    assert dropped.tolist() == [] and cache.live_positions(sequence, 0).tolist() == [0, 1, 2]


@pytest.mark.skipif(not native.available(), reason="the C extension is not built")
@pytest.mark.parametrize("page_slots", [0, 33, -1, True])
def test_page_slots(page_slots):
    with pytest.raises(ValueError, match="page_slots must be"):
        NativeCache(CONFIG, page_slots)


@each_cache
def test_max_bytes(make):
    make(CONFIG, max_bytes=2**80)
    with pytest.raises(ValueError, match="max_bytes"):
        make(CONFIG, max_bytes=0)
