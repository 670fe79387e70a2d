"""The kernels of a decode step in C (csrc/linear.c, csrc/layers.c): same names, arguments and results as kernels.py.

An array must be float32, contiguous and of the right shape; a ValueError names one that is not, as C checks nothing.
If a row's size is a multiple of 4096 bytes, C expects 64 bytes of padding after it (dcp_stride). Results have it;
inputs without it are copied.
"""

from typing import Any

import numpy as np

from dcp_ref.native.extension import FLOAT, STORAGE, ffi, lib, pointer, rows
from dcp_ref.native.memory import Memory
from dcp_ref.runtime.precision import check_storage, quantized_columns

LANES = 32  # columns of a panel: DCP_LANES
KINDS = {"gelu_new": 0, "gelu": 1, "relu": 2}


class Matrix:
    """W [in, out] in panels of 32 columns, as stored (csrc/kernels.h); `c` is the dcp_matrix."""

    def __init__(self, w: np.ndarray, bias: np.ndarray | None, storage: str, memory: Memory) -> None:
        if w.ndim != 2 or not w.size:
            raise ValueError(f"w must be a matrix [in, out], not {w.shape}")
        self.n_in, self.n_out = w.shape
        if bias is not None and bias.shape != (self.n_out,):
            raise ValueError(f"bias must have shape {(self.n_out,)}, not {bias.shape}")
        check_storage("storage", storage)
        n_panels, rows = -(-self.n_out // LANES), 4 // np.dtype(storage).itemsize  # rows that share 4 bytes of a lane
        self.panels = memory.array((n_panels, -(-self.n_in // rows), LANES, rows), storage)
        self.scale = np.empty(self.n_out, np.float32) if storage == "int8" else None
        self.bias = None if bias is None else np.array(bias, np.float32)
        for first, stored, scale in quantized_columns(w, storage):
            end = first + stored.shape[1]
            whole = self.n_in % rows == 0 and end % LANES == 0
            columns = stored if whole else np.pad(stored, [(0, -self.n_in % rows), (0, -end % LANES)])
            panels = columns.reshape(-1, rows, columns.shape[1] // LANES, LANES).transpose(2, 0, 3, 1)
            self.panels[first // LANES : -(-end // LANES)] = panels
            if self.scale is not None:
                self.scale[first:end] = scale
        self.c = ffi.new("dcp_matrix *", {
            "n_in": self.n_in, "n_out": self.n_out, "type": STORAGE[storage],
            "panel": ffi.from_buffer(self.panels), "scale": _or_null(self.scale), "bias": _or_null(self.bias)})


def pack(w: np.ndarray, bias: np.ndarray | None = None, storage: str = "float32",
         memory: Memory | None = None) -> Matrix:  # [in, out], [out]
    """Weights for `linear`, or for `embedding` as [C, V]; in `memory`, next to the weights packed there before.

    Raises ValueError when float16 cannot hold them.
    """
    return Matrix(w, bias, storage, memory or Memory(0))


def shared_memory() -> Memory:
    """Memory into which all matrices of a model are packed, side by side."""
    return Memory()


def linear(x, w: Matrix, add=None, threads=0):  # [N, in], [N, out] -> [N, out]
    """x W + bias, + add; a row's result does not depend on the rows beside it."""
    n = len(x)
    y, added = rows(n, w.n_out), ffi.NULL if add is None else _rows("add", add, (n, w.n_out))
    lib.dcp_linear(pointer(y), _rows("x", x, (n, w.n_in)), added, w.c, n, threads)
    return y


def layer_norm(x, g, b, epsilon, threads=0):  # [N, C], [C], [C] -> [N, C]
    n, C = x.shape
    y, g, b = rows(n, C), _floats("g", g, (C,)), _floats("b", b, (C,))
    lib.dcp_layer_norm(pointer(y), _rows("x", x, x.shape), g, b, epsilon, n, C, threads)
    return y


def activation(x, kind, threads=0):  # [N, inner]
    """`gelu_new`, `gelu` or `relu`."""
    n, width = x.shape
    y, numbers = rows(n, width), n and (n - 1) * lib.dcp_stride(width) + width
    lib.dcp_activation(pointer(y), _rows("x", x, x.shape), KINDS[kind], numbers, threads)
    return y


def embedding(ids, positions, wte: Matrix, wpe, threads=0):  # int64 [N] x 2, [C, V], [n_positions, C] -> [N, C]
    ids, positions = np.asarray(ids), np.asarray(positions)
    for name, x, end in (("ids", ids, wte.n_out), ("positions", positions, len(wpe))):
        if (x.size and x.dtype.kind not in "iu") or x.ndim != 1 or x.shape != ids.shape or np.any((x < 0) | (x >= end)):
            raise ValueError(f"{name} must be integers [N] in [0, {end})")
    ids, positions = (np.ascontiguousarray(x, np.int64) for x in (ids, positions))
    y = rows(len(ids), wte.n_in)
    lib.dcp_embedding(pointer(y), *(ffi.from_buffer("int64_t[]", x) for x in (ids, positions)),
                      wte.c, _floats("wpe", wpe, (len(wpe), wte.n_in)), len(ids), threads)
    return y


def _or_null(x: np.ndarray | None) -> Any:
    return ffi.NULL if x is None else ffi.from_buffer("float[]", x)


def _rows(name: str, x: np.ndarray, shape: tuple[int, int]) -> Any:
    """The start of x, or of a copy that has C's row stride. Raises ValueError naming x."""
    n, width = shape
    if n < 2 or (stride := lib.dcp_stride(width)) == width:
        return _floats(name, x, shape)
    if not (x.shape == shape and x.dtype == FLOAT and x.strides == (4 * stride, 4) and x.flags.aligned):
        _floats(name, x, shape)
        apart = rows(n, width)
        apart[:] = x
        x = apart
    return pointer(x)


def _floats(name: str, x: np.ndarray, shape: tuple[int, ...]) -> Any:
    flags = x.flags
    if not (x.shape == shape and x.dtype == FLOAT and flags.c_contiguous and flags.aligned):
        raise ValueError(f"{name} must be contiguous float32 {shape}, not {x.dtype} {x.shape}")
    return ffi.from_buffer("float[]", x)
