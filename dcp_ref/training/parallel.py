"""Run work in parallel threads, with BLAS limited to one thread each; and keep freed memory for reuse."""

import ctypes
import functools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

MMAP_MAX, TRIM_THRESHOLD = -4, -1  # glibc's M_MMAP_MAX and M_TRIM_THRESHOLD
GETTER, SETTER = (f"scipy_openblas_{verb}_num_threads64_" for verb in ("get", "set"))

Item = TypeVar("Item")
Result = TypeVar("Result")


def processors() -> int:
    """How many threads can work at once: the processors that this process may use, at most OMP_NUM_THREADS."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13: what taskset, cpusets and PYTHON_CPU_COUNT leave
        count = os.process_cpu_count() or 1
    else:
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for name in ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT"):
        bound = os.environ.get(name, "").split(",")[0].strip()  # "4,2" means 4 threads, and 2 in nested regions
        if bound.isdecimal():
            count = min(count, int(bound) or count)
    return count


class Pool(Executor):
    """A pool of threads: fewer than asked for if the system refuses some; if it refuses all, the caller does the work.

    All threads start in the constructor, so that none can be refused later.
    """

    def __init__(self, threads: int) -> None:
        self._executor, self.threads = _started(threads)
        if self._executor is None or self.threads < threads:  # `tokenizers` panics if its own threads are refused
            os.environ["TOKENIZERS_PARALLELISM"] = "false"

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As Executor.submit. Without threads, the work is done before it returns."""
        if self._executor is not None:
            return self._executor.submit(function, *args, **kwargs)
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:  # not KeyboardInterrupt, which is for the caller
            future.set_exception(error)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As Executor.shutdown."""
        if self._executor is not None:
            self._executor.shutdown(wait, cancel_futures=cancel_futures)


def _started(threads: int) -> tuple[ThreadPoolExecutor | None, int]:
    """An executor whose threads all run, and their number; (None, 1) if the system refuses them all."""
    executor, gate, n = ThreadPoolExecutor(max(1, threads)), threading.Event(), 0
    try:
        while n < threads:
            executor.submit(gate.wait)  # no thread is idle, so each call starts one
            n += 1
    except RuntimeError:  # can't start new thread
        pass
    finally:
        gate.set()
    if n == threads > 0:
        return executor, n
    executor.shutdown()
    return _started(n) if n else (None, 1)


def side_by_side(function: Callable[[Item], Result], items: Iterable[Item], pool: Pool) -> Iterator[Result]:
    """The results of function(item), in the items' order, computed in parallel.

    At most pool.threads items are begun and not yet yielded, so results do not pile up behind a slow one. A single item
    is computed in the caller's thread, where NumPy's BLAS may use all of its threads.
    """
    items = list(items)
    if len(items) == 1:
        yield function(items[0])
        return
    begun: deque[Future[Any]] = deque()
    with one_thread():
        for item in items:
            done = [begun.popleft().result()] if len(begun) == pool.threads else []
            begun.append(pool.submit(function, item))  # before the yield: threads need not wait for the caller
            yield from done
        while begun:
            yield begun.popleft().result()


def keep_memory() -> None:
    """Make glibc keep the memory of freed arrays for new ones. Call it at the start of a process that only trains.

    Without it, the system has to clear new pages for each large array: a fifth of a step of GPT-2 small. It cannot be
    undone, because glibc does not tell its settings, so `train` leaves the choice to its caller. Other C libraries are
    left alone.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(MMAP_MAX, 0)
        libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)


class _Limit:
    """How many callers are inside `one_thread`, and the threads of each BLAS before the first of them."""

    lock, users = threading.Lock(), 0
    before: tuple[int, ...] = ()


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, the OpenBLAS of NumPy's wheels uses one thread a call, as its threads would compete with ours.

    OpenBLAS threads wait by spinning: on 2 busy cores, matrix products of a training step took 2 to 4 times as long
    with them. Any other BLAS is left alone: set OMP_NUM_THREADS=1 for it before the start. Several threads may be
    inside and leave in any order; the last one restores what the first one found.
    """
    libraries = _openblas()
    with _Limit.lock:
        if _Limit.users == 0:
            _Limit.before = tuple(getattr(library, GETTER)() for library in libraries)
        _Limit.users += 1
        _set_threads([1] * len(libraries))
    try:
        yield
    finally:
        with _Limit.lock:
            _Limit.users -= 1
            if _Limit.users == 0:
                _set_threads(_Limit.before)


def _set_threads(threads: Iterable[int]) -> None:
    for library, n in zip(_openblas(), threads, strict=True):
        getattr(library, SETTER)(n)


@functools.cache  # looked up in every step
def _openblas() -> list[ctypes.CDLL]:
    root = Path(np.__file__).parent
    paths = [*root.parent.glob("numpy.libs/*openblas*"), *root.glob(".dylibs/*openblas*")]
    return [library for path in paths if hasattr(library := ctypes.CDLL(str(path)), SETTER)]
