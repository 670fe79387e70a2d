"""NumPy's matrix products on one thread each, while threads of our own run them side by side."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

GETTER, SETTER = (f"scipy_openblas_{verb}_num_threads64_" for verb in ("get", "set"))


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, the OpenBLAS that comes with NumPy's wheels uses one thread a call; its own threads would fight ours.

    They wait by spinning: measured on 2 cores that had other work too, training-sized products took 2 to 4 times as
    long without this. With any other BLAS nothing happens; set OMP_NUM_THREADS=1 before starting then.
    """
    root = Path(np.__file__).parent
    paths = [*root.parent.glob("numpy.libs/*openblas*"), *root.glob(".dylibs/*openblas*")]
    libraries = [library for path in paths if hasattr(library := ctypes.CDLL(str(path)), SETTER)]
    before = [getattr(library, GETTER)() for library in libraries]
    try:
        for library in libraries:
            getattr(library, SETTER)(1)
        yield
    finally:
        for library, threads in zip(libraries, before, strict=True):
            getattr(library, SETTER)(threads)

