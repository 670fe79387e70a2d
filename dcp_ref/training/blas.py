"""Work side by side on threads of our own, and NumPy's matrix products on one thread each meanwhile; and memory."""

import ctypes
import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

MMAP_MAX, TRIM_THRESHOLD = -4, -1  # glibc's M_MMAP_MAX and M_TRIM_THRESHOLD, and what they are without us:
DEFAULTS = {MMAP_MAX: 65536, TRIM_THRESHOLD: 128 << 10}
GETTER, SETTER = (f"scipy_openblas_{verb}_num_threads64_" for verb in ("get", "set"))

Item = TypeVar("Item")
Result = TypeVar("Result")


class Pool(ThreadPoolExecutor):
    """Threads, and how many."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.threads = threads


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


@contextmanager
def kept_memory() -> Iterator[None]:
    """Inside, glibc keeps the memory of freed arrays for new ones; afterwards it gives back what is free.

    Otherwise large arrays come as fresh pages, which the system has to clear: a fifth of a step of GPT-2 small. Another
    libc is left as it is.
    """
    libc = ctypes.CDLL(None)
    if not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        yield
        return
    libc.mallopt(MMAP_MAX, 0)
    libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        for name, value in DEFAULTS.items():
            libc.mallopt(name, value)
        libc.malloc_trim(0)


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, the OpenBLAS that comes with NumPy's wheels uses one thread a call; its own threads would fight ours.

    They wait by spinning: measured on 2 cores that had other work too, training-sized products took 2 to 4 times as
    long without this. With any other BLAS nothing happens; set OMP_NUM_THREADS=1 before starting then.
    """
    libraries = _openblas()
    before = [getattr(library, GETTER)() for library in libraries]
    try:
        for library in libraries:
            getattr(library, SETTER)(1)
        yield
    finally:
        for library, threads in zip(libraries, before, strict=True):
            getattr(library, SETTER)(threads)


@functools.cache  # every step asks
def _openblas() -> list[ctypes.CDLL]:
    root = Path(np.__file__).parent
    paths = [*root.parent.glob("numpy.libs/*openblas*"), *root.glob(".dylibs/*openblas*")]
    return [library for path in paths if hasattr(library := ctypes.CDLL(str(path)), SETTER)]
