"""Parts side by side: in order, few at once, and the threads of NumPy's matrix products meanwhile."""

import ctypes
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
from models import SMALL
from thread_tools import SANITIZED, run_python
from training_tools import run_settings

from dcp_ref import weights
from dcp_ref.training import blas, data, step, train
from dcp_ref.training.checkpoint import State

LIBRARIES = [*Path(np.__file__).parent.parent.glob("numpy.libs/*openblas*")]
with_openblas = pytest.mark.skipif(not LIBRARIES, reason="NumPy came with another BLAS")


def blas_threads():
    return getattr(ctypes.CDLL(str(LIBRARIES[0])), blas.GETTER)()


@pytest.fixture
def three_blas_threads():
    library = ctypes.CDLL(str(LIBRARIES[0]))
    before = blas_threads()
    getattr(library, blas.SETTER)(3)
    yield
    getattr(library, blas.SETTER)(before)


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

    with blas.Pool(threads) as pool:
        for i, result in enumerate(blas.side_by_side(work, range(n), pool)):
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
    with blas.Pool(2) as pool:
        step.batch_gradients(state, ids, targets, 2.0, 0.5, size=1, pool=pool)
    assert 2 <= most <= 2 + 2


def test_a_failing_part_is_raised():
    with blas.Pool(2) as pool, pytest.raises(ZeroDivisionError):
        list(blas.side_by_side(lambda x: 1 // x, [1, 0, 1, 1, 1], pool))


@with_openblas
def test_matrix_products_side_by_side_get_one_thread_and_then_theirs_again(three_blas_threads):
    with blas.Pool(2) as pool:
        assert list(blas.side_by_side(lambda _: blas_threads(), range(4), pool)) == [1] * 4
        assert blas_threads() == 3
        with pytest.raises(ZeroDivisionError):
            list(blas.side_by_side(lambda x: 1 // x, [0, 1], pool))
        assert blas_threads() == 3


@with_openblas
def test_a_part_alone_leaves_matrix_products_their_threads(three_blas_threads):
    with blas.Pool(2) as pool:
        assert list(blas.side_by_side(lambda _: blas_threads(), [0], pool)) == [3]


@with_openblas
@pytest.mark.parametrize(("micro_batch", "threads"), [(4, {3}), (2, {1})])
def test_a_run_in_one_part_uses_the_threads_of_blas(text, tmp_path, monkeypatch, three_blas_threads, micro_batch,
                                                    threads):
    seen, real = set(), step.loss_and_grads
    monkeypatch.setattr(step, "loss_and_grads", lambda *args: seen.add(blas_threads()) or real(*args))
    train(run_settings(text, tmp_path / "run", micro_batch=micro_batch, steps=2), progress=False)
    assert seen == threads and blas_threads() == 3


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt") or SANITIZED, reason="not glibc's malloc")
def test_a_process_that_asks_for_it_keeps_freed_memory():
    """In a process of its own: an array as large as one that was freed has no pages that the system has to clear."""
    first, again = map(int, run_python(KEEPING).split())
    assert first >= 32  # huge pages; 16,384 small ones
    assert again < 16


KEEPING = """
import resource
import numpy as np
from dcp_ref.training import blas

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(64 << 20, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

blas.keep_memory()
print(faults(), faults())
"""
