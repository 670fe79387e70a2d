"""Steps of one token a sequence, made again with other numbers: bitwise what they would be anew."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import moderate_model, random_model

from dcp_ref import Config, Engine
from dcp_ref.runtime import native
from dcp_ref.runtime.block import CacheFull, page_bytes
from dcp_ref.runtime.decoder import MATRICES
from dcp_ref.runtime.policies import heavy_hitters, learned

if not native.available():
    pytest.skip("the C extension is not built", allow_module_level=True)

MODEL = moderate_model()
BITS = np.testing.assert_array_equal


def twins(model, **options):
    """Two engines; the second never makes a step again."""
    engines = [Engine(model, "native", **options) for _ in range(2)]
    anew = engines[1]._decoder
    logits = anew.logits
    anew.logits = lambda *args: (setattr(anew, "_step", None), logits(*args))[1]
    return engines


def fed(engines, sequences, tokens, logits="last"):
    first, second = (engine.feed(sequences, tokens, logits) for engine in engines)
    for a, b in zip(first, second, strict=True):
        BITS(a, b)
    BITS(*[engine.live_counts(sequences) for engine in engines])


@settings(max_examples=30)
@given(st.data(), st.sampled_from([learned, heavy_hitters(3, 4)]), st.booleans())
def test_steps_in_any_order(data, policy, propagate):
    """Of any of three sequences in any order, many in a row alike; prompts, forks, releases and trims between them."""
    engines, left = twins(moderate_model(propagate_in_depth=propagate), policy=policy), dict.fromkeys(range(3), 100)
    for engine in engines:
        for _ in left:
            engine.new_sequence()
    for turn in range(8):
        chosen = data.draw(st.permutations(sorted(left)))[: data.draw(st.integers(1, len(left)))]
        counts = data.draw(st.sampled_from([[1] * len(chosen), [1, 3, 2, 40][: len(chosen)]]))
        for again in range(data.draw(st.integers(1, 4)) if max(counts) == 1 else 1):
            tokens = [[(7 * turn + 11 * again + 5 * t + s) % 300 for t in range(n)]
                      for s, n in zip(chosen, counts, strict=True)]
            fed(engines, chosen, tokens, data.draw(st.sampled_from(["last", "all"])))
        what = data.draw(st.sampled_from(["fork", "release", "trim", "nothing", "nothing"]))
        if what == "trim":
            [engine.trim() for engine in engines]
        elif what == "fork" and len(left) < 4:
            [child] = {engine.fork(chosen[0]) for engine in engines}
            left[child] = 100
        elif what == "release" and len(left) > 1:
            del left[chosen[0]]
            [engine.release(chosen[0]) for engine in engines]


@pytest.mark.parametrize("between", [[[1, 2], [3, 4]], [[1], [2, 3]]])
def test_the_same_step_after_a_prompt(between):
    engines = twins(MODEL)
    for engine in engines:
        sequences = [engine.new_sequence() for _ in range(2)]
    for tokens in ([[5], [6]], [[7], [8]], between, [[5], [6]], [[7], [8]]):
        fed(engines, sequences, tokens)


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_rows_that_stand_further_apart(weights):
    """No array of theirs may be a copy, which would keep the first step's numbers."""
    config = Config(vocab_size=300, n_positions=16, n_embd=1024, n_layer=2, n_head=2, n_inner=2048, int_n_embd=4)
    engines = twins(random_model(config, 0, 1.0), weights=weights)
    for engine in engines:
        sequences = [engine.new_sequence() for _ in range(3)]
    for turn in range(5):
        fed(engines, sequences, [[turn + 20 * s] for s in sequences])


def test_a_step_like_the_last_one_calls_no_kernel_by_name(monkeypatch):
    engine = Engine(MODEL, "native")
    sequence = engine.new_sequence()
    engine.feed([sequence], [[1, 2, 3]])
    first = engine.feed([sequence], [[4]])[0].copy()
    with monkeypatch.context() as patch:
        patch.delattr(engine._decoder.kernels, "activation")
        second = engine.feed([sequence], [[5]])
        with pytest.raises(AttributeError, match="activation"):
            engine.feed([sequence], [[6, 7]])
    assert not np.array_equal(first, second[0])


def test_an_interrupted_step_is_not_made_again():
    engine = Engine(MODEL, "native")
    a, b = engine.new_sequence(), engine.new_sequence()

    def interrupted():
        raise KeyboardInterrupt

    for token in range(3):
        engine.feed([a, b], [[token], [token]])
    engine._decoder._step.calls[9] = (interrupted, ())
    with pytest.raises(KeyboardInterrupt):
        engine.feed([a, b], [[3], [3]])
    with pytest.raises(ValueError, match="0 was interrupted"):
        engine.feed([a, b], [[3], [3]])
    assert engine._decoder._step is None


def test_the_same_step_after_one_that_had_no_room():
    """What was refused had come as far as the cache."""
    engines = twins(MODEL, max_cache_bytes=4 * page_bytes(MODEL.config, 32, "float32", learned))
    for engine in engines:
        a, b = engine.new_sequence(), engine.new_sequence()
    for token in range(3):
        fed(engines, [a], [[token]])
    for engine in engines:
        with pytest.raises(CacheFull):
            engine.feed([b], [[7] * 128])
    fed(engines, [a], [[3]])


@pytest.mark.parametrize("again", [False, True])
def test_a_sequence_released_in_the_middle_of_its_step(again, monkeypatch):
    """As a signal's handler can: an error, where C would read freed memory."""
    engine = Engine(MODEL, "native")
    a, b = engine.new_sequence(), engine.new_sequence()
    for token in range(2 * again):
        engine.feed([a], [[token]])
    step = engine._cache._step.__func__

    def release(cache, *args):
        if a in engine._length:
            engine.release(a)
            engine.fork(b)
        return step(cache, *args)

    monkeypatch.setattr(type(engine._cache), "_step", release)
    if again:
        engine._decoder._step.calls.insert(1, (engine.release, (a,)))
    with pytest.raises((RuntimeError, KeyError, ValueError), match="released"):
        engine.feed([a], [[7]])


def test_another_sequence_released_while_a_step_is_recorded(monkeypatch):
    """The layers after that have another batch: the step is not made again."""
    engines = twins(MODEL)
    for engine in engines:
        a, b = engine.new_sequence(), engine.new_sequence()
    step = engines[0]._cache.step

    def release(*args, **kwargs):
        result = step(*args, **kwargs)
        if b in engines[0]._length:
            engines[0].release(b)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(engines[0]._cache, "step", release)
        fed(engines, [a], [[3]])
    for token in range(3):
        fed(engines, [a], [[token]])


def test_another_engine_fed_in_the_middle_of_a_step(monkeypatch):
    engines, other = twins(MODEL), Engine(MODEL, "native")
    for engine in engines:
        a = engine.new_sequence()
    sequence, step = other.new_sequence(), engines[0]._cache.step

    def feed_both(*args, **kwargs):
        other.feed([sequence], [[1]])
        other.feed([sequence], [[1, 2]])
        return step(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(engines[0]._cache, "step", feed_both)
        fed(engines, [a], [[3]])
    fed(engines, [a], [[4]])


def test_the_same_step_after_a_release():
    """Another sequence has the memory of the one that is gone."""
    engines = twins(MODEL)
    for engine in engines:
        a, b = engine.new_sequence(), engine.new_sequence()
    for sequence in (a, a, b, a):
        fed(engines, [sequence], [[1]])
    for engine in engines:
        engine.release(a)
        c = engine.new_sequence()
    for sequence in (c, b, c, c):
        fed(engines, [sequence], [[2]])


def test_weights_stand_side_by_side():
    """As they are read: one after the other in as few large pages as may be."""
    decoder = Engine(MODEL, "native")._decoder
    panels = [decoder._wte.panels, *(p[name].panels for p in decoder.blocks for name in MATRICES)]
    ends = [x.ctypes.data + x.nbytes for x in panels]
    gaps = [x.ctypes.data - end for x, end in zip(panels[1:], ends, strict=False)]
    assert all(0 <= gap < 64 + 128 * MODEL.config.n_embd * 4 for gap in gaps)  # in between: attn.int, and alignment
