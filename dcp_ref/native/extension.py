"""The compiled extension, where it is built, and arrays as C wants them."""

import importlib
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import numpy as np

from dcp_ref.runtime.precision import STORAGES

NAME = "dcp_ref._native"
HERE = Path(__file__).parent.parent  # where it belongs
NOT_BUILT = f"the C extension is not built (there is none in {HERE}): install a C compiler, then reinstall"


def _load() -> tuple[Any, Any, str]:
    """The extension's ffi and lib; or None for both, and why it cannot be used: the package runs on NumPy then."""
    try:
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
    return None, None, (  # an editable install lends its own to every clone; but theirs may be of another version
        f"the C extension is not built in {HERE}, which hides the installed package in {other}, where it is: "
        "run from another directory, or build it here too (python setup.py build_ext --inplace)")


def _elsewhere() -> Path | None:
    """The directory of another copy of the package, later on sys.path, that has the extension."""
    paths = [path for path in sys.path if Path(path).resolve() != HERE.parent.resolve()]
    package = PathFinder.find_spec("dcp_ref", paths)
    found = package and PathFinder.find_spec(NAME, package.submodule_search_locations)
    return Path(found.origin).parent if found and found.origin else None


ffi, lib, why_not = _load()

FLOAT = np.dtype(np.float32)
STORAGE = {name: code for code, name in enumerate(STORAGES)}  # DCP_FLOAT32, DCP_FLOAT16, DCP_INT8


def available() -> bool:
    """Whether the extension is built."""
    return lib is not None


def missing() -> str:
    """Why the extension is not there, where it was looked for, and what to do."""
    return why_not or NOT_BUILT


def simd_level() -> str:
    """The instruction set that the kernels run with here: "avx512f", "avx2" or "baseline"; "" when not built."""
    return ffi.string(lib.dcp_simd_level()).decode() if available() else ""


def threads(most: int = 0) -> int:
    """The threads that a kernel uses here when it may use `most`, 0 being no bound; 1 when not built."""
    return lib.dcp_threads(most) if available() else 1


def rows(n: int, width: int, out: np.ndarray | None = None) -> np.ndarray:  # [n, width]
    """An [n, width] array with C's row stride: `out`, or else a new one. Raises ValueError when `out` lacks it."""
    stride = width if n < 2 else lib.dcp_stride(width)
    if out is None:
        return np.empty((n, stride), FLOAT)[:, :width]
    flags, apart = out.flags, out.strides != (4 * stride, 4) if n > 1 else not out.flags.c_contiguous
    if out.shape != (n, width) or out.dtype != FLOAT or apart or not flags.writeable or not flags.aligned:
        raise ValueError(f"out must be what a kernel returned, or rows({n}, {width})")
    return out


def pointer(x: np.ndarray) -> Any:
    """Where rows of floats start, keeping them alive; NULL where there are none."""
    return ffi.from_buffer("float[]", x[0]) if len(x) else ffi.NULL
