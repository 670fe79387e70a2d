"""Ctrl-C, or memory that is refused, at any line of the package: nothing is half done, nothing is lost.

    an engine's methods       all or nothing; no page is lost, the lock is free
    a cache's reserve, step   the same, and the step can be made again
    load                      the error comes out as it is, no file stays open
    generate, trace           no cache stays alive
    `complete`                the engine that it was given holds none of its tokens

test_interrupted.py looks closer at the calls of C; test_refused_memory.py refuses the allocations themselves.
"""

import dataclasses
import gc
import os

import numpy as np
import pytest
from fault_tools import fails_at_line
from models import SMALL, random_model
from theorem_tools import BACKENDS, close
from thread_tools import SANITIZED, is_free

from dcp_ref import Engine, generate, load, save, trace
from dcp_ref.native.cache import NativeCache
from dcp_ref.runtime import lock
from dcp_ref.runtime.cache import KVCache
from dcp_ref.runtime.generation import complete, make_rows
from dcp_ref.runtime.sampling import Sampling

MODEL = random_model(dataclasses.replace(SMALL, n_layer=2), 0, 1.0)
ONE_LAYER = random_model(dataclasses.replace(SMALL, n_layer=1), 0, 1.0)
Q, K, V, Q_INT, K_INT = np.random.default_rng(0).normal(size=(5, 4, SMALL.n_embd)).astype(np.float32)
Q_INT, K_INT = Q_INT[:, : SMALL.int_n_embd].copy(), K_INT[:, : SMALL.int_n_embd].copy()
pytestmark = pytest.mark.skipif(SANITIZED, reason="a sanitizer sees no lines of Python")
each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_error = pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
CACHES = {"native": NativeCache, "numpy": KVCache}


OPERATIONS = {
    "feed": lambda e, a, b: e.feed([a, b], [[1, 2], [5]], drops=[]),
    "fork": lambda e, a, b: e.fork(a),
    "release": lambda e, a, b: e.release(b),
    "trim": lambda e, a, b: e.trim(),
    "new": lambda e, a, b: e.new_sequence(),
    "read": lambda e, a, b: (e.live_positions(a, 1), e.live_counts([a, b]), e.stats()),
}


@each_backend
@each_error
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_engine(backend, error, operation):
    engine = Engine(MODEL, backend)

    def fed(*chunks):
        sequence = engine.new_sequence()
        return sequence, [engine.feed([sequence], [chunk])[0] for chunk in chunks]

    def held(sequence):
        return [engine.live_positions(sequence, layer).tolist() for layer in range(MODEL.config.n_layer)]

    (first, _), (second, _), (longer, _) = fed([3, 4, 5]), fed([6, 7]), fed([3, 4, 5], [1, 2])
    after = {0: held(first), 2: held(longer)}
    expected = {0: fed([3, 4, 5], [7])[1][1], 2: fed([3, 4, 5], [1, 2], [7])[1][2]}
    known = set(engine._cache._sequences._sequences)
    n, hit = 0, True
    while hit:
        n += 1
        before = engine.stats().live_tokens
        engine.trim()
        a, b = engine.fork(first), engine.fork(second)
        hit = fails_at_line(n, error(), lambda: OPERATIONS[operation](engine, a, b))  # noqa: B023
        assert is_free(engine._cache.lock.held)
        more = engine._cache.length(a) - 3
        assert held(a) == after[more]
        if operation != "release":
            assert engine._cache.length(b) - 2 == (more > 0)
            engine.release(b)
        else:
            try:
                engine.release(b)
            except ValueError as refused:
                assert "was released" in str(refused)
        if n % 8 == 0:
            close(backend, engine.feed([a], [[7]])[0], expected[more])
        engine.release(a)
        if hit:  # else the fork is there
            assert engine.stats().live_tokens == before
        engine.release(engine.new_sequence())  # one whose release was interrupted is forgotten with the next
        strays = set(engine._cache._sequences._sequences) - known
        assert len(strays) <= 1  # what was made, and nobody got its handle: it has no tokens
        for stray in strays:
            engine.release(stray)
    engine.trim()
    assert engine.stats().bytes_owned == engine.stats().bytes_reserved and n > 2


def one_layer(cache, batch):
    return cache.step(0, batch, Q, K, V, Q_INT, K_INT, 0.5)


@each_backend
@each_error
def test_a_step_of_a_cache(backend, error):
    """Of two sequences: both have their tokens, or none has; then the step can be made again."""
    cache = CACHES[backend](SMALL)
    handles = [cache.new_sequence(), cache.new_sequence()]
    expected = one_layer(cache, cache.reserve(handles, [3, 1]))
    live = [cache.live_positions(handle, 0).tolist() for handle in handles]
    n, hit = 0, True
    while hit:
        n += 1
        for handle in handles:
            cache.release(handle)
        handles, results = [cache.new_sequence(), cache.new_sequence()], []
        batch = cache.reserve(handles, [3, 1])
        hit = fails_at_line(n, error(), lambda: results.append(one_layer(cache, batch)))  # noqa: B023
        counts = cache.live_counts(handles)
        if not counts.any():
            results = [one_layer(cache, batch)]
        assert [cache.live_positions(handle, 0).tolist() for handle in handles] == live
        for found in results:
            np.testing.assert_array_equal(found[0], expected[0])
            np.testing.assert_array_equal(found[1], expected[1])
    assert n > 10


@each_backend
@each_error
def test_a_reservation(backend, error):
    cache = CACHES[backend](SMALL)
    sequence, n, hit = cache.new_sequence(), 0, True
    while hit:
        n += 1
        cache.trim()
        hit = fails_at_line(n, error(), lambda: cache.reserve([sequence], [4]))  # noqa: B023
        assert is_free(cache.lock.held) and cache.stats()[:3] == (0, 0, 0) and cache.length(sequence) == 0
        one_layer(cache, cache.reserve([sequence], [4]))
        cache.release(sequence)
        sequence = cache.new_sequence()
    assert n > 10


@each_error
def test_a_model_that_is_loaded(error, tmp_path):
    """Memory that is refused is no damage of a file."""
    n, hit = 0, True
    save(ONE_LAYER, tmp_path / "model")
    expected = load(tmp_path / "model")
    count = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else None
    while hit:
        n += 1
        raised, models = error(), []
        hit = fails_at_line(n, raised, lambda: models.append(load(tmp_path / "model")))  # noqa: B023
        assert len(models) == (not hit)
        raised.__traceback__ = None
        if hit and count is not None:
            assert len(os.listdir("/proc/self/fd")) == count
    assert models[0].config == expected.config
    assert all((models[0].params[name] == x).all() for name, x in expected.params.items())
    assert n > 100


def caches():
    gc.collect()
    return len(lock._locks)


@each_backend
@pytest.mark.parametrize("what", ["generate", "trace"])
def test_no_cache_stays_alive(backend, what):
    """And the next one is made as ever."""
    def call():
        if what == "trace":
            return trace(ONE_LAYER, [1, 2, 3], backend=backend).drops.dropped_by.tolist()
        return [row.ids for row in generate(ONE_LAYER, [[1, 2], [3]], 2, backend=backend, trace=True)]

    expected, before = call(), caches()
    n, hit = 0, True
    while hit:
        n += 1
        hit = fails_at_line(n, KeyboardInterrupt(), call)
    assert n > 100 and caches() == before and call() == expected


@each_backend
@each_error
def test_rows_that_share_an_engine_with_others(backend, error):
    """After an interrupt in the middle of a release, the row can be released again."""
    engine, n, hit, again = Engine(ONE_LAYER, backend), 0, True, 0
    other = engine.new_sequence()
    engine.feed([other], [[1, 2, 3]])
    before = engine.stats()[:3]
    while hit:
        n += 1
        rows = make_rows(ONE_LAYER, [[1, 2], [3]], 2, 0, ())
        hit = fails_at_line(n, error(), lambda: complete(engine, rows, Sampling()))  # noqa: B023
        held = [row for row in rows if row.sequence is not None]
        again += len(held)
        assert len(held) <= 1
        for row in held:
            row.release(engine)
        assert engine.stats()[:3] == before  # an empty sequence may be left, whose handle nobody got
    assert n > 100 and again < 60
