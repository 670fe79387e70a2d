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
    """The threads that can work at once here: processors that this process may use, at most OMP_NUM_THREADS."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13: what taskset, cpusets and PYTHON_CPU_COUNT leave
        count = os.process_cpu_count() or 1
    else:
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for name in ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT"):
        bound = os.environ.get(name, "").split(",")[0].strip()  # "4,2" is 4, and 2 within each
        if bound.isdecimal():
            count = min(count, int(bound) or count)
    return count


class Pool(Executor):
    """Threads, and how many: fewer than asked for if the system refuses some, and the caller's own if it refuses all.

    They are started here, so that nothing can be refused later.
    """

    def __init__(self, threads: int) -> None:
        self._executor, self.threads = _started(threads)
        if self._executor is None or self.threads < threads:  # `tokenizers` would panic when its own are refused
            os.environ["TOKENIZERS_PARALLELISM"] = "false"

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As Executor.submit; without threads, it returns when the work is done."""
        if self._executor is not None:
            return self._executor.submit(function, *args, **kwargs)
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:  # an interrupt is the caller's own here
            future.set_exception(error)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As Executor.shutdown."""
        if self._executor is not None:
            self._executor.shutdown(wait, cancel_futures=cancel_futures)


def _started(threads: int) -> tuple[ThreadPoolExecutor | None, int]:
    """So many threads that run, or as many as the system gives, and how many; None and 1 for the caller's own."""
    executor, gate, n = ThreadPoolExecutor(max(1, threads)), threading.Event(), 0
    try:
        while n < threads:
            executor.submit(gate.wait)  # as nobody is idle, each of these starts a thread
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
    """function(item) of each, in order, as `map` gives them.

    At most pool.threads are begun and not yet handed out: results that wait for a slower one before them do not pile
    up. One item alone is done here, and may use all threads that NumPy's BLAS has.
    """
    items = list(items)
    if len(items) == 1:
        yield function(items[0])
        return
    begun: deque[Future[Any]] = deque()
    with one_thread():
        for item in items:
            done = [begun.popleft().result()] if len(begun) == pool.threads else []
            begun.append(pool.submit(function, item))  # first, so that no thread waits for who takes the result
            yield from done
        while begun:
            yield begun.popleft().result()


def keep_memory() -> None:
    """From now on, glibc keeps the memory of freed arrays for new ones. For a process that only trains, at its start.

    Otherwise large arrays come as fresh pages, which the system has to clear: a fifth of a step of GPT-2 small. There
    is no way back, as glibc does not tell its settings: so `train`, which others call too, leaves them alone. Another
    libc stays as it is.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(MMAP_MAX, 0)
        libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)


class _Limit:
    """How many are inside `one_thread`, and the threads that each BLAS used before the first of them."""

    lock, users = threading.Lock(), 0
    before: tuple[int, ...] = ()


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, the OpenBLAS that comes with NumPy's wheels uses one thread a call; its own threads would fight ours.

    They wait by spinning: measured on 2 cores that had other work too, training-sized products took 2 to 4 times as
    long without this. With any other BLAS nothing happens; set OMP_NUM_THREADS=1 before starting then. Several threads
    may be inside, and leave in any order: the last one puts back what the first one found.
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


@functools.cache  # every step asks
def _openblas() -> list[ctypes.CDLL]:
    root = Path(np.__file__).parent
    paths = [*root.parent.glob("numpy.libs/*openblas*"), *root.glob(".dylibs/*openblas*")]
    return [library for path in paths if hasattr(library := ctypes.CDLL(str(path)), SETTER)]
