"""The kernels of a decode step in NumPy: what those of the same names in native/kernels.py must equal.

Rows [N, ...] are tokens of any sequences. Weights are packed once, in fewer bits if wanted (precision.py).
`threads` and `memory` are for C alone: NumPy's matrix products have threads of their own.
"""

from typing import Any, NamedTuple

import numpy as np

from dcp_ref import layers
from dcp_ref.runtime.precision import dequantized, quantized_columns


class Matrix(NamedTuple):
    """W [in, out] as it is read back, and the bias [out] or 0."""

    w: np.ndarray
    bias: np.ndarray | float


def pack(w: np.ndarray, bias: np.ndarray | None = None, storage: str = "float32",
         memory: Any = None) -> Matrix:  # [in, out], [out]
    """Weights for `linear`, or for `embedding` as [C, V]. Raises ValueError when float16 cannot hold them."""
    read_back = np.empty(w.shape, np.float32)
    for first, columns, scale in quantized_columns(w, storage):
        read_back[:, first : first + columns.shape[1]] = dequantized(columns, scale)
    return Matrix(read_back, 0.0 if bias is None else np.array(bias, np.float32))


def shared_memory() -> None:
    """The memory into which C packs all matrices of a model; here each has its own."""


def rows(n: int, width: int) -> np.ndarray:  # [n, width]
    """An array for n rows of a result."""
    return np.empty((n, width), np.float32)


def linear(x, w: Matrix, add=None, threads=0):  # [N, in], [N, out] -> [N, out]
    """x W + bias, + add."""
    y = x @ w.w + w.bias
    return y if add is None else y + add


def layer_norm(x, g, b, epsilon, threads=0):  # [N, C], [C], [C] -> [N, C]
    return layers.layer_norm(x, g, b, np.float32(epsilon))[0]


def activation(x, kind, threads=0):  # [N, inner]
    """`gelu_new`, `gelu` or `relu`."""
    return layers.activation(x, kind)[0]


def embedding(ids, positions, wte: Matrix, wpe, threads=0):  # int64 [N] x 2, [C, V], [n_positions, C] -> [N, C]
    return wte.w[:, ids].T + wpe[positions]
