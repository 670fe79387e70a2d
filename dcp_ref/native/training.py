"""The kernels of training in C (csrc/training.h is their manual): names, arguments and results as in NumPy.

All arrays are float32.
"""

import functools
import math

import numpy as np

from dcp_ref import interaction, layers
from dcp_ref.block import NUMPY, Kernels
from dcp_ref.native.extension import available, ffi, lib


def kernels(threads: int) -> Kernels:
    """Those in C, on at most so many threads each (0: no bound); NumPy's where the extension is not built."""
    if not available():
        return NUMPY
    ours = (attention, attention_backward, log_mask, log_mask_backward, activation, cross_entropy)
    return Kernels(*(functools.partial(function, threads=threads) for function in ours))


def attention(q, k, v, log_i, scale, threads=0):  # [..., H, T, D] x 3, [..., T, T] -> [..., H, T, D]
    *batch, H, T, D = q.shape
    y, log_sum = np.empty((*batch, T, H, D), np.float32), np.empty((*batch, H, T), np.float32)
    saved = (q, k, v, np.ascontiguousarray(log_i), scale, y, log_sum)
    _attend(saved, threads)
    return y.swapaxes(-2, -3), saved


def attention_backward(dy, saved, threads=0):  # [..., H, T, D] -> [..., H, T, D] x 3, [..., T, T]
    dy = np.ascontiguousarray(dy.swapaxes(-2, -3))
    dq, dk, dv, dlog_i = np.empty_like(dy), np.zeros_like(dy), np.zeros_like(dy), np.zeros_like(saved[3])
    _attend(saved, threads, dy, dq, dk, dv, dlog_i)
    return *(d.swapaxes(-2, -3) for d in (dq, dk, dv)), dlog_i


def _attend(saved, threads, *gradients):
    q, k, v, log_i, scale, y, log_sum = saved
    *batch, H, T, D = q.shape
    scratch = np.empty(lib.dcp_attention_floats(T, H, D), np.float32)
    for b in np.ndindex(*batch):
        head, token, _ = (stride // 4 for stride in q[b].strides)
        arrays = [_pointer(x[b]) for x in (q, k, v, log_i, y, log_sum, *gradients)]
        arguments = ffi.new("dcp_attention *", [T, H, D, token, head, scale, *arrays])
        lib.dcp_attend_all(arguments, _pointer(scratch), bool(gradients), threads)


def log_mask(s, alpha, delay=0, threads=0):  # [..., T, T] -> [..., T, T]
    if alpha == math.inf:  # a step, whose slope is 0
        return interaction.log_mask(s, alpha, delay)[0], np.zeros_like(s)
    log_i, slope, T = np.empty_like(s), np.empty_like(s), s.shape[-1]
    for b in np.ndindex(*s.shape[:-2]):
        lib.dcp_log_mask(*map(_pointer, (log_i[b], slope[b], s[b])), T, alpha - 1, min(delay, T), threads)
    return log_i, slope


def log_mask_backward(dlog_i, saved, threads=0):  # [..., T, T] -> [..., T, T]
    slope, dlog_i, ds = saved, np.ascontiguousarray(dlog_i), np.empty_like(saved)
    for b in np.ndindex(*ds.shape[:-2]):
        lib.dcp_log_mask_backward(*map(_pointer, (ds[b], dlog_i[b], slope[b])), ds.shape[-1], threads)
    return ds


def activation(x, kind, threads=0):  # any shape
    if kind != "gelu_new":
        return layers.activation(x, kind)
    y, slope = np.empty_like(x), np.empty_like(x)
    lib.dcp_gelu_new_saved(*map(_pointer, (y, slope, x)), x.size, threads)
    return y, slope


def cross_entropy(logits, targets, threads=0):  # [..., V], [...] -> scalar
    counted, n = targets != -1, max((targets != -1).sum(), 1)
    at = np.where(counted, targets, 0)[..., None]
    e, (largest, z) = np.empty_like(logits), np.empty((2, *targets.shape, 1), np.float32)
    lib.dcp_exp_rows(*map(_pointer, (e, largest, z, logits)), targets.size, logits.shape[-1], threads)
    nll = (np.log(z) - (np.take_along_axis(logits, at, -1) - largest))[..., 0]
    return nll[counted].sum() / n, (e, z, at, counted[..., None] / n)


def _pointer(x):
    return ffi.cast("float *", x.ctypes.data)
