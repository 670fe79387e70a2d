"""What comes between: finalizers, signal handlers, generators, interrupts, refused memory. All or nothing, no crash."""

import gc
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import stress
from models import moderate_model
from theorem_tools import BACKENDS
from thread_tools import SANITIZED, run_python
from tolerances import THEOREM_LOGITS

import dcp_ref
from dcp_ref import Engine

MODEL = moderate_model()
TEXT = np.random.default_rng(1).integers(0, 300, 120).tolist()
PACKAGE = str(Path(dcp_ref.__file__).parent)
each_backend = pytest.mark.parametrize("backend", BACKENDS)
START = """
import gc, sys, threading, atexit
from models import moderate_model
from dcp_ref import Engine
model = moderate_model()
"""


def close(backend, got, expected):
    np.testing.assert_allclose(got, expected, **({"rtol": 0} if backend == "native" else THEOREM_LOGITS))


def alone(backend, *chunks):
    """The last logits of one sequence that was fed these lists of tokens, in an engine of its own."""
    engine = Engine(MODEL, backend)
    sequence = engine.new_sequence()
    return [engine.feed([sequence], [chunk])[0] for chunk in chunks][-1]


def is_free(engine):
    """Whether another thread finds the lock free."""
    taken = []

    def take():
        taken.append(engine._cache.lock.held.acquire(timeout=5))
        if taken[0]:
            engine._cache.lock.held.release()

    thread = threading.Thread(target=take)
    thread.start()
    thread.join(10)
    return taken == [True]


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
    expected = alone(backend, *([token] for token in TEXT[:60]))
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
    close(backend, row, alone(backend, [1], [7, 8], [9], [7, 8], [9], [5], [3]))
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
        close(backend, row, alone(backend, *([token] for token in [*tokens, 9])))
    engine.release(main), engine.release(other)
    assert engine.stats()[:3] == (0, 0, 0) and is_free(engine)


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


# ---- interrupts: a line of this package after the other raises ----

class Interrupt(KeyboardInterrupt):
    pass


def interrupted_at(n, call):
    """Whether line n of the package's that `call` runs was there, and raised."""
    left = [n]

    def trace(frame, event, _):
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            left[0] -= 1
            if left[0] == 0:
                raise Interrupt
        return trace

    sys.settrace(trace)
    try:
        call()
    except Interrupt:
        return True
    finally:
        sys.settrace(None)
    return False


@each_backend
def test_a_release_at_any_line_of_a_feed_is_for_good(backend):
    """As of a signal's handler, which comes between two lines: the feed is done before, or refused by name."""
    n, hit = 0, True
    while hit:
        n, hit = n + 1, False
        engine = Engine(MODEL, backend)
        gone, kept = engine.new_sequence(), engine.new_sequence()
        engine.feed([gone, kept], [[1], [2]])

        def trace(frame, event, _, left=[n], engine=engine, gone=gone):  # noqa: B006
            nonlocal hit
            if not frame.f_code.co_filename.startswith(PACKAGE):
                return None
            if event == "line" and not hit:
                left[0] -= 1
                if left[0] == 0:
                    hit = True
                    engine.release(gone)
            return trace

        sys.settrace(trace)
        try:
            engine.feed([gone, kept], [[3], [4]])
            fed = True
        except ValueError as error:
            fed = f"{gone} is unknown or was released" not in str(error)
        finally:
            sys.settrace(None)
        assert engine._cache.length(kept) == 1 + fed
        live = engine.live_counts([kept] if hit else [gone, kept]).sum()
        assert engine.stats().live_tokens == live
    assert n > 10


OPERATIONS = {
    "feed": lambda e, a, b: e.feed([a, b], [TEXT[:2], [5]]),
    "fork": lambda e, a, b: e.fork(a),
    "release": lambda e, a, b: e.release(b),
    "trim": lambda e, a, b: e.trim(),
    "new": lambda e, a, b: e.new_sequence(),
    "read": lambda e, a, b: (e.live_positions(a, 1), e.live_counts([a, b]), e.stats()),
}


@each_backend
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_interrupt_at_any_line(backend, operation):
    """The operation has done all or nothing, no page is lost, and the lock is free."""
    n, rounds = 0, 0
    expected = {2: alone(backend, TEXT[:3], TEXT[:2], [7]), 0: alone(backend, TEXT[:3], [7])}
    while True:
        n += 1
        engine = Engine(MODEL, backend)
        a, b = engine.new_sequence(), engine.new_sequence()
        engine.feed([a, b], [TEXT[:3], TEXT[3:5]])
        if not interrupted_at(n, lambda: OPERATIONS[operation](engine, a, b)):  # noqa: B023
            break
        rounds += 1
        assert is_free(engine)
        more = engine._cache.length(a) - 3
        if operation != "release":
            assert engine._cache.length(b) - 2 == (more > 0)
            engine.release(b)
        else:
            try:
                engine.release(b)
            except ValueError as error:
                assert "was released" in str(error)
        close(backend, engine.feed([a], [[7]])[0], expected[more])
        assert engine.stats().live_tokens == engine.live_counts([a]).sum()
        engine.release(a)
        engine.trim()
        assert engine.stats() == (0, 0, 0, 0, 0)
    assert rounds > 1


# ---- memory that is refused ----

@each_backend
def test_out_of_memory_in_a_feed_changes_nothing(backend, monkeypatch):
    """Whichever array is refused: a feed that could not be done has not begun."""
    engine, plain = Engine(MODEL, backend), np.empty
    a, b = engine.new_sequence(), engine.new_sequence()
    engine.feed([a, b], [TEXT[:3], TEXT[3:5]])
    before = engine.stats()[:3]
    for n in range(1, 1000):
        left = [n]

        def refuse(*args, left=left, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                raise MemoryError("refused")
            return plain(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(np, "empty", refuse)
            try:
                [row, _] = engine.feed([a, b], [TEXT[:4], [5]])
                break
            except MemoryError:
                assert engine.stats()[:3] == before and engine._cache.length(a) == 3
    close(backend, row, alone(backend, TEXT[:3], TEXT[:4]))
    assert n > 1


SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <errno.h>
#include <sys/mman.h>
static volatile long left = -1, refused;
void arm(long n) { left = n; refused = 0; }
long disarm(void) { left = -1; return refused; }
static int refuse(void)
{
    if (left > 0 && --left == 0) {
        refused = 1;
        errno = ENOMEM;
        return 1;
    }
    return 0;
}
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
void *malloc(size_t n) { return refuse() ? NULL : __libc_malloc(n); }
void *calloc(size_t n, size_t m) { return refuse() ? NULL : __libc_calloc(n, m); }
void *realloc(void *p, size_t n) { return refuse() ? NULL : __libc_realloc(p, n); }
void *mmap(void *a, size_t n, int p, int f, int d, off_t o)
{
    static void *(*real)(void *, size_t, int, int, int, off_t);
    if (real == NULL)
        real = dlsym(RTLD_NEXT, "mmap");
    return refuse() ? MAP_FAILED : real(a, n, p, f, d, o);
}
"""


@pytest.mark.skipif(SANITIZED or shutil.which("cc") is None or not sys.platform.startswith("linux"),
                    reason="needs a C compiler, Linux, and no sanitizer")
@pytest.mark.skipif("native" not in BACKENDS, reason="NumPy's own arithmetic does not survive it")
def test_the_nth_allocation_of_a_feed_is_refused(tmp_path):
    """For every n: of Python's, NumPy's, C's and the system's; no sequence has changed, and none is lost."""
    (tmp_path / "shim.c").write_text(SHIM)
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-w", "-o", tmp_path / "shim.so", tmp_path / "shim.c"], check=True)
    code = START + """
import ctypes
import numpy as np
shim = ctypes.CDLL(sys.argv[1])
text = list(range(100))
engine = Engine(model, "native")
a, b = engine.new_sequence(), engine.new_sequence()
engine.feed([a, b], [text[:3], text[3:5]])
reference = engine.fork(a)
expected = engine.feed([reference], [text[:9]])[0]
engine.release(reference)
before, n, failures = engine.stats()[:3], 0, 0
while True:
    n += 1
    engine.trim()
    shim.arm(n)
    try:
        rows = engine.feed([a, b], [text[:9], [5]])
    except (MemoryError, SystemError):  # NumPy forgets to say why, at some places of its own
        rows = None
    hit = shim.disarm()
    if rows is not None:
        assert np.allclose(rows[0], expected, atol=1e-4)
        if not hit:
            break
        engine.release(a), engine.release(b)
        a, b = engine.new_sequence(), engine.new_sequence()
        engine.feed([a, b], [text[:3], text[3:5]])
        continue
    failures += 1
    assert engine.stats()[:3] == before and engine._cache.length(a) == 3 and engine._cache.length(b) == 2
print(failures > 20)
"""
    shim = str(tmp_path / "shim.so")
    assert run_python(code, shim, LD_PRELOAD=shim, PYTHONMALLOC="malloc", OMP_NUM_THREADS="1",
                      OPENBLAS_NUM_THREADS="1") == "True\n"


@pytest.mark.skipif(SANITIZED or not sys.platform.startswith("linux"), reason="needs Linux, and no sanitizer")
@each_backend
def test_a_feed_under_a_limit_of_memory(backend):
    """All or nothing, at many limits; and what fits afterwards is right."""
    code = START + f"""
import resource
import numpy as np
from models import random_model
from dcp_ref import Config
config = Config(vocab_size=50, n_positions=1024, n_embd=512, n_head=8, n_layer=4, n_inner=2048)
engine = Engine(random_model(config, 0, 0.0), {backend!r})
a, text = engine.new_sequence(), [i % 50 for i in range(150)]
engine.feed([a], [text[:3]])
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
failed, rows = 0, []
for extra in range(0, 40, 2):
    child = engine.fork(a)
    resource.setrlimit(resource.RLIMIT_AS, (used + (extra << 20), resource.RLIM_INFINITY))
    try:
        rows += engine.feed([child], [text])
    except MemoryError:
        failed += 1
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if len(rows) + failed == extra // 2 + 1 and engine._cache.length(child) == 3:
        continue
    assert engine._cache.length(child) == 153
    engine.release(child)
expected = engine.feed([a], [text])[0]
assert all(np.allclose(row, expected, atol=1e-3) for row in rows)
print(failed > 0 or engine.backend == "numpy")
"""
    assert run_python(code) == "True\n"


@pytest.mark.skipif(SANITIZED or not sys.platform.startswith("linux"), reason="needs Linux, and no sanitizer")
def test_where_no_thread_can_be_started_one_does_the_work():
    """OpenMP would end the process."""
    code = START + """
import resource
from dcp_ref import native
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (20 << 20), resource.RLIM_INFINITY))
engine = Engine(model, "native")  # before this nothing has asked for threads, whose stacks take 8 MB each
sequence = engine.new_sequence()
[row] = engine.feed([sequence], [list(range(100))])
print(native.threads(), row.shape)
"""
    if "native" in BACKENDS:
        assert run_python(code, OMP_NUM_THREADS="4", OMP_STACKSIZE="8M") == "1 (300,)\n"


def test_programs_drawn_at_random_end_without_a_signal():
    """A few of those of `make stress`; in the last two a finalizer feeds when nothing can be imported any more."""
    stress.run([*range(6), 184, 285])
