"""Parts side by side: in order, few at once, and the threads of NumPy's matrix products meanwhile."""

import ctypes
import os
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
from models import SMALL
from thread_tools import SANITIZED, run_python
from training_tools import result, run_settings

from dcp_ref.analysis import texts
from dcp_ref.checkpoints import weights
from dcp_ref.training import data, loop, parallel, step, train
from dcp_ref.training.run_files import State

LIBRARIES = [*Path(np.__file__).parent.parent.glob("numpy.libs/*openblas*")]
with_openblas = pytest.mark.skipif(not LIBRARIES, reason="NumPy came with another BLAS")


def blas_threads():
    return getattr(ctypes.CDLL(str(LIBRARIES[0])), parallel.GETTER)()


@pytest.fixture
def three_blas_threads():
    library = ctypes.CDLL(str(LIBRARIES[0]))
    before = blas_threads()
    getattr(library, parallel.SETTER)(3)
    yield
    getattr(library, parallel.SETTER)(before)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("n", [0, 1, 2, 20])
def test_results_come_in_order_and_do_not_pile_up(threads, n):
    begun, handed_out, most = 0, 0, 0
    lock = threading.Lock()

    def work(item):
        nonlocal begun
        with lock:
            begun += 1
        return item

    with parallel.Pool(threads) as pool:
        for i, result in enumerate(parallel.side_by_side(work, range(n), pool)):
            assert result == i
            most = max(most, begun - handed_out)
            handed_out += 1
            threading.Event().wait(0.002)  # time for the others to run ahead, if they could
    assert begun == n
    assert most <= threads + 1  # the one that is handed out, and those behind it


def test_gradients_of_a_large_batch_do_not_pile_up(monkeypatch):
    """However many parts a batch has, no more gradients exist at once than threads, the sum, and the one added."""
    alive, most, lock, real = 0, 0, threading.Lock(), step.loss_and_grads

    def gone():
        nonlocal alive
        alive -= 1

    def counted(*args):
        nonlocal alive, most
        loss, grads = real(*args)
        with lock:
            alive += 1
            most = max(most, alive)
        weakref.finalize(grads["wte.weight"], gone)
        return loss, grads

    monkeypatch.setattr(step, "loss_and_grads", counted)
    state = State.fresh(SMALL, weights.init_params(SMALL, 0))
    ids, targets = data.batch(np.arange(99) % 11, 40, 9, 0, 0)
    with parallel.Pool(2) as pool:
        step.batch_gradients(state, ids, targets, 2.0, [0.5] * len(ids), size=1, pool=pool)
    assert 2 <= most <= 2 + 2


def test_a_failing_part_is_raised():
    with parallel.Pool(2) as pool, pytest.raises(ZeroDivisionError):
        list(parallel.side_by_side(lambda x: 1 // x, [1, 0, 1, 1, 1], pool))


@with_openblas
def test_matrix_products_side_by_side_get_one_thread_and_then_theirs_again(three_blas_threads):
    with parallel.Pool(2) as pool:
        assert list(parallel.side_by_side(lambda _: blas_threads(), range(4), pool)) == [1] * 4
        assert blas_threads() == 3
        with pytest.raises(ZeroDivisionError):
            list(parallel.side_by_side(lambda x: 1 // x, [0, 1], pool))
        assert blas_threads() == 3


@with_openblas
def test_a_part_alone_leaves_matrix_products_their_threads(three_blas_threads):
    with parallel.Pool(2) as pool:
        assert list(parallel.side_by_side(lambda _: blas_threads(), [0], pool)) == [3]


@with_openblas
@pytest.mark.parametrize(("micro_batch", "threads"), [(4, {3}), (2, {1})])
def test_a_run_in_one_part_uses_the_threads_of_blas(text, tmp_path, monkeypatch, three_blas_threads, micro_batch,
                                                    threads):
    seen, real = set(), step.loss_and_grads
    monkeypatch.setattr(step, "loss_and_grads", lambda *args: seen.add(blas_threads()) or real(*args))
    train(run_settings(text, tmp_path / "run", micro_batch=micro_batch, steps=2), progress=False)
    assert seen == threads and blas_threads() == 3


@with_openblas
@pytest.mark.parametrize("first_out", [0, 1])
def test_whoever_leaves_last_gives_the_threads_back(three_blas_threads, first_out):
    """In any order, also by an error, and whatever others set meanwhile."""
    both = [parallel.one_thread(), parallel.one_thread()]
    for inside in both:
        inside.__enter__()
        assert blas_threads() == 1
    assert both.pop(first_out).__exit__(None, None, None) is False
    assert blas_threads() == 1
    with pytest.raises(ZeroDivisionError):
        both[0].__exit__(ZeroDivisionError, ZeroDivisionError(), None) or 1 // 0
    assert blas_threads() == 3
    with parallel.one_thread():
        getattr(ctypes.CDLL(str(LIBRARIES[0])), parallel.SETTER)(2)
        with parallel.one_thread():
            assert blas_threads() == 1
    assert blas_threads() == 3


@with_openblas
def test_many_threads_at_once_give_the_threads_back(three_blas_threads):
    barrier, seen = threading.Barrier(4), []

    def work():
        for _ in range(200):
            with parallel.one_thread():
                seen.append(blas_threads())
        barrier.wait()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(seen) == {1} and blas_threads() == 3


def test_processors_are_those_that_may_be_used(monkeypatch):
    for name in ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.delattr(os, "process_cpu_count", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3, 9, 11} if pid == 0 else set(), raising=False)
    assert parallel.processors() == 6
    for value, count in [("4", 4), (" 3,2", 3), ("99", 6), ("0", 6), ("-1", 6), ("x", 6), ("", 6), ("1", 1)]:
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert parallel.processors() == count
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.setenv("OMP_THREAD_LIMIT", "2")
    assert parallel.processors() == 2
    monkeypatch.setenv("OMP_THREAD_LIMIT", "50")
    monkeypatch.setattr(os, "process_cpu_count", lambda: 3, raising=False)
    assert parallel.processors() == 3
    monkeypatch.delattr(os, "process_cpu_count")
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert parallel.processors() == 50


@pytest.mark.parametrize(("given", "asked"), [(None, 2), (5, 5)])
def test_a_run_uses_the_processors_unless_told(text, tmp_path, monkeypatch, given, asked):
    pools, real = [], parallel.Pool
    monkeypatch.setattr(loop, "processors", lambda: 2)
    monkeypatch.setattr(loop, "Pool", lambda threads: pools.append(threads) or real(threads))
    train(run_settings(text, tmp_path / "run", threads=given, steps=1), progress=False)
    assert pools == [asked]


@pytest.mark.parametrize("most", [0, 1, 2])
def test_where_threads_are_refused_those_that_there_are_do_the_work(text, unbroken, tmp_path, monkeypatch, most):
    """None at all, too: then the caller's own does it."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    allow_threads(monkeypatch, most)
    with parallel.Pool(3) as pool:
        assert pool.threads == max(1, most) and os.environ["TOKENIZERS_PARALLELISM"] == "false"
        names = list(parallel.side_by_side(lambda _: threading.current_thread().name, range(20), pool))
        assert (set(names) == {threading.main_thread().name}) is (most == 0)
        assert list(pool.map(lambda x: x + 1, range(9))) == list(range(1, 10))
        with pytest.raises(ZeroDivisionError):
            list(parallel.side_by_side(lambda x: 1 // x, [1, 0], pool))
    train(run_settings(text, tmp_path / "run"), progress=False)
    assert result(tmp_path / "run") == unbroken


def allow_threads(monkeypatch, most):
    real, running = threading.Thread.start, []

    def start(self):
        running[:] = [thread for thread in running if thread.is_alive()]
        if len(running) == most:
            raise RuntimeError("can't start new thread")
        running.append(self)
        real(self)

    monkeypatch.setattr(threading.Thread, "start", start)


def test_texts_are_read_where_no_thread_can_be_made(monkeypatch, text):
    model = weights.load("tiny")
    expected = texts.read_tokens(model, [text])
    allow_threads(monkeypatch, 0)
    np.testing.assert_array_equal(texts.read_tokens(model, [text]), expected)


MALLOC = """
import ctypes, sys
import numpy as np
from training_tools import run_settings
from dcp_ref.training import train

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd a b c d e".split()]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info

def mapped():
    before = libc.mallinfo2().hblks
    array = np.ones(64 << 20, np.uint8)
    return libc.mallinfo2().hblks - before

libc.mallopt(-4, int(sys.argv[3]))  # M_MMAP_MAX
print(mapped())
train(run_settings(sys.argv[1], sys.argv[2], steps=1), progress=False)
print(mapped())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2") or SANITIZED, reason="not glibc's malloc")
@pytest.mark.parametrize("most", [0, 65536])
def test_a_run_leaves_the_settings_of_malloc_alone(text, tmp_path, most):
    assert run_python(MALLOC, text, tmp_path / "run", most).split() == [str(int(most > 0))] * 2


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt") or SANITIZED, reason="not glibc's malloc")
def test_a_process_that_asks_for_it_keeps_freed_memory():
    """In a process of its own: an array as large as one that was freed has no pages that the system has to clear."""
    first, again = map(int, run_python(KEEPING).split())
    assert first >= 32  # huge pages; 16,384 small ones
    assert again < 16


KEEPING = """
import resource
import numpy as np
from dcp_ref.training import parallel

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(64 << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

parallel.keep_memory()
print(faults(), faults())
"""
