"""What comes between: finalizers, signal handlers, generators. All or nothing, no crash."""

import gc
import random
import signal

import numpy as np
import pytest
import stress
from fault_tools import at_line
from models import moderate_model
from theorem_tools import BACKENDS, alone, close
from thread_tools import is_free, run_python

from dcp_ref import Engine

MODEL = moderate_model()
TEXT = np.random.default_rng(1).integers(0, 300, 120).tolist()
each_backend = pytest.mark.parametrize("backend", BACKENDS)
START = """
import gc, sys, threading, atexit
from models import moderate_model
from dcp_ref import Engine
model = moderate_model()
"""


# ---- what the collector and the end of the interpreter run ----

GENERATOR = START + """
def stream(engine):
    sequence = engine.new_sequence()
    try:
        while True:
            yield engine.feed([sequence], [[1, 2, 3]])
    finally:
        engine.release(sequence)
"""


@each_backend
@pytest.mark.parametrize("end", [
    "stream_of_one = stream(engine); next(stream_of_one)",
    "stream_of_one = stream(engine); next(stream_of_one); engine.me = engine; engine.stream = stream_of_one; "
    "del engine, stream_of_one; gc.collect()",
    "streams = [stream(engine) for _ in range(9)]; [next(s) for s in streams]; cycle = [streams, engine]; "
    "cycle.append(cycle); del streams, engine, cycle; gc.collect()",
    "stream_of_one = stream(engine); next(stream_of_one); atexit.register(stream_of_one.close); "
    "atexit.register(engine.trim)",
    "import threading; stream_of_one = stream(engine); "
    "thread = threading.Thread(target=lambda: [next(stream_of_one) for _ in range(40)], daemon=True); thread.start()"])
def test_a_generator_that_releases_may_end_at_any_time(backend, end):
    assert run_python(GENERATOR + f"engine = Engine(model, {backend!r})\n{end}\nprint('end')\n") == "end\n"


@each_backend
@pytest.mark.parametrize("method", ["release(s)", "fork(s)", "stats()", "live_positions(s, 1)", "live_counts([s])",
                                    "trim()", "feed([s], [[1]])", "new_sequence()", "_cache.slot_table(s, 0)"])
def test_a_finalizer_may_call_anything(backend, method):
    """Of an object that dies together with the engine, in either order."""
    if backend == "numpy" and "slot_table" in method:
        pytest.skip("a KVCache has no slots")
    code = START + f"""
class Holder:
    def __init__(self, engine):
        self.engine, self.s = engine, engine.new_sequence()
        engine.feed([self.s], [[1, 2, 3]])
    def __del__(self):
        s = self.s
        self.engine.{method}

for order in range(2):
    engine = Engine(model, {backend!r})
    holder = Holder(engine)
    ring = [holder, engine] if order else [engine, holder]
    ring.append(ring)
    del engine, holder, ring
    gc.collect()
last = Holder(Engine(model, {backend!r}))
last.me = last
print("end")
"""
    assert run_python(code) == "end\n"


@each_backend
def test_another_sequence_released_by_the_collector_in_the_middle_of_feeds(backend):
    engine = Engine(MODEL, backend)
    kept = engine.new_sequence()

    class Releases:
        def __init__(self):
            self.me, self.sequence = self, engine.new_sequence()
            engine.feed([self.sequence], [[1, 2]])

        def __del__(self):
            engine.release(self.sequence)

    before = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for token in TEXT[:60]:
            Releases()
            [row] = engine.feed([kept], [[token]])
    finally:
        gc.set_threshold(*before)
    gc.collect()
    expected = alone(MODEL, backend, *([token] for token in TEXT[:60]))
    close(backend, row, expected)
    assert engine.stats().live_tokens == engine.live_counts([kept]).sum()


# ---- arguments that use the engine ----

@each_backend
def test_token_lists_that_feed_the_sequence(backend):
    """They are read before anything is looked up: so what they feed comes first."""
    engine = Engine(MODEL, backend)
    a, b = engine.new_sequence(), engine.new_sequence()

    def lists():
        engine.feed([a], [[7, 8]])
        yield [9]

    def sequences():
        engine.feed([a], [[5]])
        yield a

    engine.feed([a], [[1], ])
    for _ in range(2):
        [row] = engine.feed([a], lists())
    [row] = engine.feed(sequences(), ([token] for token in [3]))
    close(backend, row, alone(MODEL, backend, [1], [7, 8], [9], [7, 8], [9], [5], [3]))
    with pytest.raises(ValueError, match=f"{b} is unknown or was released"):
        engine.feed([a, b], ([1] for _ in range(2) if b in (engine.release(b), b) or True))


@each_backend
def test_counts_of_a_sequence_that_is_released_meanwhile(backend):
    engine = Engine(MODEL, backend)
    a, b = engine.new_sequence(), engine.new_sequence()
    with pytest.raises(ValueError, match=f"{a} is unknown or was released"):
        engine.live_counts(s if s == a else engine.release(a) or s for s in (a, b))


# ---- signal handlers ----

def during_feeds(handler, work, seconds=0.0004):
    """Run `work` while a timer's signal calls `handler`, for as long as it takes."""
    if not hasattr(signal, "setitimer"):
        pytest.skip("no timer")
    busy = []

    def once(*_):
        if not busy:  # not in the middle of itself
            busy.append(True)
            handler()
            busy.clear()

    old = signal.signal(signal.SIGALRM, once)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        return work()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


@each_backend
@pytest.mark.parametrize("what", ["another", "the same", "release", "fork", "everything"])
def test_a_handler_may_use_the_engine(backend, what):
    """Every outer feed is right, and what the handler fed as well: in the order in which they came."""
    engine = Engine(MODEL, backend)
    main, other = engine.new_sequence(), engine.new_sequence()
    places, others, calls = [], [], random.Random(0)

    def handler():
        kind = calls.choice(["another", "the same", "release", "fork"]) if what == "everything" else what
        if kind == "another" and len(others) < 100:
            engine.feed([other], [[len(others)]])
            others.append(len(others))
        elif kind == "the same" and len(places) < 50:
            places.append(engine._cache.length(main))
            engine.feed([main], [[200]])
        elif kind == "fork":
            child = engine.fork(main)
            assert len(engine.live_positions(child, 0)) <= engine._cache.length(child)
            engine.release(child)
        elif kind == "release":
            engine.release(engine.new_sequence())
            engine.trim()
        engine.stats(), engine.live_counts([main, other])

    def work():
        for token in range(60):
            engine.feed([main], [[token]])

    during_feeds(handler, work)
    outer, text = iter(range(60)), []
    for place in range(60 + len(places)):
        text.append(200 if place in places else next(outer))
    for sequence, tokens in ((main, text), (other, others)):
        assert engine._cache.length(sequence) == len(tokens)
        [row] = engine.feed([sequence], [[9]])
        close(backend, row, alone(MODEL, backend, *([token] for token in [*tokens, 9])))
    engine.release(main), engine.release(other)
    assert engine.stats()[:3] == (0, 0, 0) and is_free(engine._cache.lock.held)


@each_backend
def test_a_handler_that_releases_the_sequence(backend):
    """The feed under way fails by name or is done; the others are as they were."""
    for _ in range(30):
        engine = Engine(MODEL, backend)
        gone, kept = engine.new_sequence(), engine.new_sequence()
        released = []

        def handler(engine=engine, gone=gone, released=released):
            if not released:
                released.append(True)
                engine.release(gone)

        def work(engine=engine, gone=gone, kept=kept):
            for token in range(1000):
                engine.feed([gone], [[token % 100]] if token < 100 else [[1]])
                engine.feed([kept], [[1]]) if token < 3 else None

        with pytest.raises(ValueError, match=f"{gone} is unknown or was released|n_positions"):
            during_feeds(handler, work, 0.003)
        assert engine.stats().live_tokens == engine.live_counts([kept]).sum() + (
            0 if released else engine.live_counts([gone]).sum())


@each_backend
def test_a_release_at_any_line_of_a_feed_is_for_good(backend):
    """As of a signal's handler, which comes between two lines: the feed is done before, or refused by name."""
    n, hit = 0, True
    while hit:
        n, hit = n + 1, False
        engine = Engine(MODEL, backend)
        gone, kept = engine.new_sequence(), engine.new_sequence()
        engine.feed([gone, kept], [[1], [2]])

        def release(engine=engine, gone=gone):
            nonlocal hit
            hit = True
            engine.release(gone)

        try:
            at_line(n, release, lambda: engine.feed([gone, kept], [[3], [4]]))  # noqa: B023
            fed = True
        except ValueError as error:
            fed = f"{gone} is unknown or was released" not in str(error)
        assert engine._cache.length(kept) == 1 + fed
        live = engine.live_counts([kept] if hit else [gone, kept]).sum()
        assert engine.stats().live_tokens == live
    assert n > 10


def test_programs_drawn_at_random_end_without_a_signal():
    """A few of those of `make stress`; in the last two a finalizer feeds when nothing can be imported any more."""
    stress.run([*range(6), 184, 285])
