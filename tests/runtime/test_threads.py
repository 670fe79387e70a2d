"""Threads: how many there are, several engines or callers at once, and children of a fork.

What could hang or crash runs in a Python of its own with a deadline.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from models import moderate_model
from thread_tools import DEADLINE, omp_threads, run_python

from dcp_ref import Engine, native

if not native.available():
    pytest.skip("the C extension is not built", allow_module_level=True)

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, and built with OpenMP")
MODEL = moderate_model()
TEXT = np.random.default_rng(1).integers(0, 300, 120)

PRELUDE = """
import os, signal, sys, threading
import numpy as np, numpy.testing  # now: a child waits for ever for an import that another thread was in
from models import moderate_model
from dcp_ref import Engine
from dcp_ref import native

MODEL, TEXT = moderate_model(), np.random.default_rng(1).integers(0, 300, 120)

def fed(engine):
    return engine.feed([engine.new_sequence()], [TEXT], logits="all")[0]

def tasks():
    return len(os.listdir("/proc/self/task"))

def child(work):
    '''Runs work in a forked child, which dies when it takes too long; returns its exit code, or minus a signal.'''
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            signal.alarm(20)
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def same(x, y):
    np.testing.assert_array_equal(x, y)
"""


def run(code, **environment):
    return run_python(PRELUDE + code, OPENBLAS_NUM_THREADS="1", PYTHONWARNINGS="ignore", **environment)


@linux
@pytest.mark.parametrize(("told", "count"), [({}, "20000"), ({"GOMP_SPINCOUNT": "7"}, "7"),
                                             ({"OMP_WAIT_POLICY": "passive"}, "0")])
def test_how_long_a_waiting_thread_spins(told, count, monkeypatch):
    """As GCC's OpenMP shows it; and nothing stays in the environment."""
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    code = "import os; os.dup2(1, 2); before = dict(os.environ); import dcp_ref.native; assert os.environ == before"
    shown = run_python(code, OMP_DISPLAY_ENV="VERBOSE", **told)
    if "GOMP_SPINCOUNT" not in shown:
        pytest.skip("not GCC's OpenMP")
    assert f"GOMP_SPINCOUNT = '{count}'" in shown


@linux
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_omp_num_threads(n):
    counted = "print(native.threads(), native.threads(2), native.threads(n), native.threads(99))"
    assert run(f"n = {n}; {counted}", OMP_NUM_THREADS=str(n)) == f"{n} {min(n, 2)} {n} {n}\n"


@linux
def test_the_threads_that_are_started():
    """As many as the engine, OMP_NUM_THREADS and threadpoolctl allow, whichever is the least; they stay."""
    pytest.importorskip("threadpoolctl")
    code = """
from threadpoolctl import threadpool_limits
before, engines = tasks(), [Engine(MODEL, "native", threads=n) for n in (1, 2, None)]
with threadpool_limits(1, user_api="openmp"):
    fed(engines[2])
    print(tasks() - before, native.threads())
for engine in engines:
    fed(engine)
    print(tasks() - before)
"""
    assert run(code, OMP_NUM_THREADS="4") == "0 1\n0\n1\n3\n"


@linux
def test_threadpoolctl():
    before = native.threads()
    with omp_threads(3):
        assert (native.threads(), native.threads(2), native.threads(4)) == (3, 2, 3)
        engine = Engine(MODEL, "native")
        expected = fed(engine)
        with omp_threads(1):
            np.testing.assert_array_equal(fed(engine), expected)
    with omp_threads(5):  # more than the engine was made for
        np.testing.assert_array_equal(fed(engine), expected)
    assert native.threads() == before


@pytest.mark.parametrize("threads", [0, -1, 2**31])
def test_impossible_numbers_of_threads(threads):
    with pytest.raises(ValueError, match="threads must be a positive integer or None"):
        Engine(MODEL, threads=threads)


def fed(engine, text=TEXT):
    sequence = engine.new_sequence()
    rows = [engine.feed([sequence], [piece], logits="all")[0] for piece in (text[:50], text[50:51], text[51:])]
    engine.release(sequence)
    return np.concatenate(rows)


@pytest.mark.parametrize("shared", [False, True], ids=["one each", "one for all"])
def test_engines_in_several_python_threads(shared):
    """Each caller gets what it would get alone, whoever is inside C at the same time."""
    texts = np.random.default_rng(2).integers(0, 300, (3, 120))
    alone = [fed(Engine(MODEL, "native"), text) for text in texts]
    engines = [Engine(MODEL, "native", threads=2) for _ in texts]

    def repeated(engine, text):
        return [fed(engine, text) for _ in range(4)]

    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(repeated, engines[0 if shared else i], text) for i, text in enumerate(texts)]
        for future, expected in zip(futures, alone, strict=True):
            for rows in future.result(DEADLINE):
                np.testing.assert_array_equal(rows, expected)
    assert engines[0].stats().live_tokens == 0


def test_everything_at_once_on_one_engine():
    """Feeding, forking, trimming, asking and releasing, each from a thread of its own."""
    engine = Engine(MODEL, "native")
    parent = engine.new_sequence()
    engine.feed([parent], [TEXT[:60]])
    before = [engine.live_positions(parent, layer).tolist() for layer in range(2)]
    expected = fed(Engine(MODEL, "native"))

    def forks():
        for _ in range(20):
            child = engine.fork(parent)
            engine.feed([child], [TEXT[60:90]])
            engine.release(child)

    def asks():
        for _ in range(200):
            engine.trim()
            assert engine.stats().live_tokens >= sum(map(len, before))
            assert [engine.live_positions(parent, layer).tolist() for layer in range(2)] == before

    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(work) for work in (forks, asks)]
        for _ in range(4):
            np.testing.assert_array_equal(fed(engine), expected)
        for future in futures:
            future.result(DEADLINE)
    assert [engine.live_positions(parent, layer).tolist() for layer in range(2)] == before


@linux
@pytest.mark.parametrize("threads", [1, 4])
def test_a_forked_child_goes_on(threads):
    """With the parent's engine and with its own; so do a child of it and the parent, whose threads are still there."""
    code = """
engine = Engine(MODEL, "native")
expected = fed(engine)

def work():
    assert native.threads() == 1 and tasks() == 1
    same(fed(engine), expected)
    same(fed(Engine(MODEL, "native")), expected)
    assert tasks() == 1

def work_twice():
    work()
    assert child(work) == 0

print(child(work), child(work_twice))
thread = threading.Thread(target=lambda: print(child(work)))
thread.start()
thread.join()
same(fed(engine), expected)
print(native.threads())
"""
    assert run(code, OMP_NUM_THREADS=str(threads)) == f"0 0\n0\n{threads}\n"


@linux
def test_children_of_multiprocessing():
    code = """
import multiprocessing
engine = Engine(MODEL, "native")
expected = fed(engine)

def work(_):
    same(fed(engine), expected)
    return native.threads()

with multiprocessing.get_context("fork").Pool(2) as pool:
    print(pool.map_async(work, range(4)).get(60))
"""
    assert run(code, OMP_NUM_THREADS="4") == "[1, 1, 1, 1]\n"


@linux
@pytest.mark.parametrize("inside", ["engine._cache.batch", "engine._cache._pages.make_free"])
def test_a_child_forked_in_the_middle_of_a_feed(inside):
    """Another thread of the parent is inside, and never leaves in the child: that engine says so, a new one works."""
    owner, name = inside.rsplit(".", 1)
    code = f"""
engine = Engine(MODEL, "native")
expected = fed(engine)
owner, name = {owner}, "{name}"
plain, entered, leave = getattr(owner, name), threading.Event(), threading.Event()

def waits(*args, **kwargs):
    entered.set()
    leave.wait(60)
    return plain(*args, **kwargs)

def work():
    setattr(owner, name, plain)
    for use in (lambda: fed(engine), lambda: engine.fork(0)):
        try:
            use()
        except RuntimeError as error:
            assert "in use by another thread when the process was forked" in str(error)
        else:
            raise AssertionError("no error")
    same(fed(Engine(MODEL, "native")), expected)

setattr(owner, name, waits)
results = []
thread = threading.Thread(target=lambda: results.append(fed(engine)))
thread.start()
assert entered.wait(60)
print(child(work))
leave.set()
thread.join(60)
same(results[0], expected)
"""
    assert run(code) == "0\n"


@linux
def test_children_forked_while_pages_are_taken():
    """A lock that is held when the process is forked is held for ever in the child."""
    code = """
from dcp_ref.native.extension import ffi, lib
expected, stop, done = fed(Engine(MODEL, "native")), threading.Event(), []

def take():
    pool, memory = ffi.new("dcp_pool *", {"page_slots": 1, "area_bytes": 3 * [4096], "most": 1}), bytearray(3 * 4096)
    idle = ffi.new("dcp_page[]", 1)
    lib.dcp_pool_list(pool, idle, 1)
    lib.dcp_pool_add(pool, ffi.from_buffer(memory), 1)
    bitmap, pages = ffi.new("uint32_t[1]"), ffi.new("dcp_page[1]")
    slots = ffi.new("dcp_slots *", {"bitmap": bitmap, "page": pages})
    lib.dcp_pool_grow(pool, 1)
    while not stop.is_set():
        for _ in range(1000):
            lib.dcp_slot_take(slots, pool)
            slots.pages = 0
            lib.dcp_page_free(pool, slots.page[0])
    done.append(slots.live > 0)

threads = [threading.Thread(target=take) for _ in range(2)]
for thread in threads:
    thread.start()
codes = {child(lambda: same(fed(Engine(MODEL, "native")), expected)) for _ in range(40)}
stop.set()
for thread in threads:
    thread.join()
print(codes, done)
"""
    assert run(code) == "{0} [True, True]\n"


@linux
def test_children_forked_at_any_moment():
    """While other threads are inside C: a new engine always works, and the old one works or says that it does not."""
    code = """
engine, other = Engine(MODEL, "native"), Engine(MODEL, "native")
expected, stop = fed(engine), threading.Event()

def feeds(engine):
    while not stop.is_set():
        same(fed(engine), expected)
        engine.release(max(engine._cache._sequences._sequences))

def work():
    for old in (engine, other):
        try:
            same(fed(old), expected)
        except RuntimeError as error:
            assert "when the process was forked" in str(error)
    same(fed(Engine(MODEL, "native")), expected)

threads = [threading.Thread(target=feeds, args=[each]) for each in (engine, other)]
for thread in threads:
    thread.start()
codes = [child(work) for _ in range(30)]
stop.set()
for thread in threads:
    thread.join(60)
print(set(codes))
"""
    assert run(code) == "{0}\n"
