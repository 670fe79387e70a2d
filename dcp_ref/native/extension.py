"""The compiled extension, where it is built, and arrays as C wants them."""

from typing import Any

import numpy as np

from dcp_ref.runtime.precision import STORAGES

ffi: Any
lib: Any
try:
    from dcp_ref._native import ffi, lib  # type: ignore[import-not-found, no-redef]
except ImportError:  # not built: the package runs on NumPy
    ffi = lib = None

FLOAT = np.dtype(np.float32)
STORAGE = {name: code for code, name in enumerate(STORAGES)}  # DCP_FLOAT32, DCP_FLOAT16, DCP_INT8


def available() -> bool:
    """Whether the extension is built."""
    return lib is not None


def simd_level() -> str:
    """The instruction set that the kernels run with here: "avx512f", "avx2" or "baseline"; "" when not built."""
    return ffi.string(lib.dcp_simd_level()).decode() if available() else ""


def threads(most: int = 0) -> int:
    """The threads that a kernel uses here when it may use `most`, 0 being no bound; 1 when not built."""
    return lib.dcp_threads(most) if available() else 1


def rows(n: int, width: int, out: np.ndarray | None = None) -> np.ndarray:  # [n, width]
    """An [n, width] array with C's row stride: `out` if given, else a new one. Raises ValueError when `out` lacks it."""
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
