"""The compiled extension, if it is built, and arrays laid out as C expects them."""

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import numpy as np

from dcp_ref.runtime.precision import STORAGES

NAME = "dcp_ref._native"
SIMD_LEVELS = ("avx512f", "avx2", "baseline")  # what the kernels are compiled for on x86-64, best first
HERE = Path(__file__).parent.parent  # where it belongs
NOT_BUILT = f"the C extension is not built (there is none in {HERE}): install a C compiler, then reinstall"


def _load() -> tuple[Any, Any, str]:
    """The extension's ffi and lib, and ""; or None twice, and why it cannot be used: the package then runs on NumPy."""
    try:
        with _short_waits():
            module = importlib.import_module(NAME)
    except ModuleNotFoundError as error:
        if error.name != NAME:
            return None, None, f"the C extension in {HERE} cannot be loaded ({error}): reinstall"
        other = _elsewhere()
    except ImportError as error:
        return None, None, f"the C extension in {HERE} cannot be loaded ({error}): reinstall"
    else:
        other = Path(str(module.__file__)).parent
        if other == HERE:
            return module.ffi, module.lib, ""
    if other is None:
        return None, None, NOT_BUILT
    return None, None, (  # an editable install finds its extension from every clone, whose version may be another
        f"the C extension is not built in {HERE}, which hides the installed package in {other}, where it is: "
        "run from another directory, or build it here too (python setup.py build_ext --inplace)")


@contextlib.contextmanager
def _short_waits() -> Iterator[None]:
    """Let threads of OpenMP spin for about half a millisecond, then sleep: GCC's library reads this when it is loaded.

    Its default is much more. On a processor that other processes use, a thread that spins loses its turn, and the
    thread that it waits for does not get one. Who sets either variable is obeyed; processes started later see neither.
    """
    if "GOMP_SPINCOUNT" in os.environ or "OMP_WAIT_POLICY" in os.environ:
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = "20000"
    try:
        yield
    finally:
        del os.environ["GOMP_SPINCOUNT"]


def _elsewhere() -> Path | None:
    """The directory of another copy of the package, later on sys.path, that has the extension."""
    paths = [path for path in sys.path if Path(path).resolve() != HERE.parent.resolve()]
    package = PathFinder.find_spec("dcp_ref", paths)
    found = package and PathFinder.find_spec(NAME, package.submodule_search_locations)
    return Path(found.origin).parent if found and found.origin else None


ffi, lib, why_not = _load()


def choose_simd(level: str) -> None:
    """Let the kernels use this instruction set, one of SIMD_LEVELS, while none of them runs.

    Raises ValueError if the word is unknown, or the processor or the build does not have the instruction set.
    """
    if level not in SIMD_LEVELS:
        raise ValueError(f"DCP_SIMD must be one of {', '.join(SIMD_LEVELS)}, or unset for the best, not {level!r}")
    if lib.dcp_simd_choose(level.encode()) != lib.DCP_OK:
        raise ValueError(f"DCP_SIMD={level}: this processor, or this build, does not have it; unset DCP_SIMD")


if lib is not None and (chosen := os.environ.get("DCP_SIMD")):
    choose_simd(chosen)

FLOAT = np.dtype(np.float32)
STORAGE = {name: code for code, name in enumerate(STORAGES)}  # DCP_FLOAT32, DCP_FLOAT16, DCP_INT8


def available() -> bool:
    """Whether the extension is built."""
    return lib is not None


def missing() -> str:
    """Why the extension is not there, where it was looked for, and what to do."""
    return why_not or NOT_BUILT


def simd_level() -> str:
    """The instruction set of the kernels, the best that is here unless DCP_SIMD names another; "" when not built."""
    return ffi.string(lib.dcp_simd_level()).decode() if available() else ""


def threads(most: int = 0) -> int:
    """The threads that a kernel uses here if it may use `most`; 0 is no bound. 1 when not built."""
    return lib.dcp_threads(most) if available() else 1


def rows(n: int, width: int) -> np.ndarray:  # [n, width]
    """An uninitialised array with C's row stride."""
    return np.empty((n, width if n < 2 else lib.dcp_stride(width)), FLOAT)[:, :width]


def strided(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """The arrays, or copies of them, with one distance between rows in all."""
    first = arrays[0].strides
    same = arrays[1].strides == first and arrays[-1].strides == first
    return arrays if same and first[0] >= 0 and first[0] % 4 == 0 else tuple(map(np.ascontiguousarray, arrays))


def pointer(x: np.ndarray) -> Any:
    """The start of rows of floats, which it keeps alive; NULL if there are none."""
    return ffi.from_buffer("float[]", x[0]) if len(x) else ffi.NULL
