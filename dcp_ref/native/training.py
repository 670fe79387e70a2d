"""The kernels of the dense forward and of training in C (csrc/training.h is their manual), named as NumPy's are.

All arrays are float32, laid out in any way: C gets copies of those that it could not read. Each function checks all
that it is given before it calls C: arrays of another type or shape raise ValueError, with their name.
"""

import functools
import math

import numpy as np

from dcp_ref import interaction, layers
from dcp_ref.block import NUMPY, Kernels
from dcp_ref.native.extension import FLOAT, available, ffi, lib
from dcp_ref.runtime.sampling import check_integer

STEEP = 64.0  # above it, float32 is too coarse for C's way to solve for a gate; training ends at 8
INF = np.float32(math.inf)


def kernels(threads: int) -> Kernels:
    """Those in C, on at most so many threads each (0: no bound); NumPy's where the extension is not built."""
    threads = check_integer("threads", threads, 0)
    if not available():
        return NUMPY
    ours = (attention, attention_backward, log_mask, log_mask_backward, activation, cross_entropy)
    return Kernels(*(functools.partial(function, threads=threads) for function in ours))._replace(
        cross_entropy_backward=cross_entropy_backward, check=check)


def check(params):
    """Raises ValueError for a parameter that is not float32."""
    for name, p in params.items():
        _floats(name, p)


def attention(q, k, v, log_i, scale, threads=0):  # [..., H, T, D] x 3, [..., T, T] -> [..., H, T, D]
    *batch, H, T, D = _dims("q", q, 3)
    saved = _fit(q, k, v, log_i, scale, np.empty((*batch, T, H, D), FLOAT), np.empty((*batch, H, T), FLOAT))
    _attend(saved, threads)
    return saved[-2].swapaxes(-2, -3), saved


def attention_backward(dy, saved, threads=0):  # [..., H, T, D] -> [..., H, T, D] x 3, [..., T, T]
    saved = _fit(*saved)
    dy = _contiguous(_floats("dy", dy, saved[0].shape).swapaxes(-2, -3))
    dq, dk, dv, dlog_i = np.empty_like(dy), np.zeros_like(dy), np.zeros_like(dy), np.zeros_like(saved[3])
    _attend(saved, threads, dy, dq, dk, dv, dlog_i)
    return *(d.swapaxes(-2, -3) for d in (dq, dk, dv)), dlog_i


def _fit(q, k, v, log_i, scale, y, log_sum):
    """The same, as C can read it: q, k and v laid out alike, in rows without gaps; all else without any."""
    *batch, H, T, D = _dims("q", q, 3)
    qkv = [_floats(name, x, (*batch, H, T, D)) for name, x in (("q", q), ("k", k), ("v", v))]
    alike = all(x.strides[-3:] == qkv[0].strides[-3:] and x.dtype == FLOAT and x.flags.aligned for x in qkv)
    head, token, number = qkv[0].strides[-3:]
    if not alike or number != 4 or head < 0 or token < 0 or head % 4 or token % 4:
        qkv = map(_contiguous, qkv)
    log_i = _contiguous(_floats("log_i", log_i, (*batch, T, T)))
    y = _contiguous(_floats("y", y, (*batch, T, H, D)))
    return *qkv, log_i, float(scale), y, _contiguous(_floats("log_sum", log_sum, (*batch, H, T)))


def _attend(saved, threads, *gradients):
    q, k, v, log_i, scale, y, log_sum = saved
    *batch, H, T, D = q.shape
    if q.size == 0:
        return
    scratch = np.empty(lib.dcp_attention_floats(T, H, D), FLOAT)
    for b in np.ndindex(*batch):
        head, token, _ = (stride // 4 for stride in q[b].strides)
        arrays = [_pointer(x[b]) for x in (q, k, v, log_i, y, log_sum, *gradients)]
        arguments = ffi.new("dcp_attention *", [T, H, D, token, head, scale, *arrays])
        lib.dcp_attend_all(arguments, _pointer(scratch), bool(gradients), threads)


def log_mask(s, alpha, delay=0, threads=0):  # [..., T, T] -> [..., T, T]
    s, alpha = _square("s", s), float(alpha)
    T, delay = s.shape[-1], check_integer("delay", delay, 0)
    if not alpha >= 1:
        raise ValueError(f"alpha must be in [1, inf], not {alpha!r}")
    if alpha == math.inf:  # the step is any gate on infinite scores
        s, alpha = np.where(s > 0, INF, -INF), 2.0
    if alpha > STEEP:
        return interaction.log_mask(s, alpha, delay)
    log_i, slope = np.empty_like(s), np.empty_like(s)
    for b in np.ndindex(*s.shape[:-2]):
        lib.dcp_log_mask(*map(_pointer, (log_i[b], slope[b], s[b])), T, alpha - 1, min(delay, T), threads)
    return log_i, slope


def log_mask_backward(dlog_i, saved, threads=0):  # [..., T, T] -> [..., T, T]
    if isinstance(saved, tuple):  # NumPy's, as above
        return interaction.log_mask_backward(dlog_i, saved)
    slope = _square("saved", saved)
    dlog_i, ds = _contiguous(_floats("dlog_i", dlog_i, slope.shape)), np.empty_like(slope)
    for b in np.ndindex(*ds.shape[:-2]):
        lib.dcp_log_mask_backward(*map(_pointer, (ds[b], dlog_i[b], slope[b])), ds.shape[-1], threads)
    return ds


def activation(x, kind, threads=0):  # any shape
    if kind != "gelu_new":
        return layers.activation(x, kind)
    x = _contiguous(_floats("x", x))
    y, slope = np.empty_like(x), np.empty_like(x)
    lib.dcp_gelu_new_saved(*map(_pointer, (y, slope, x)), x.size, threads)
    return y, slope


def cross_entropy(logits, targets, threads=0):  # [..., V], [...] -> scalar
    *_, V = _dims("logits", logits, 1)
    targets = np.asarray(targets)
    logits = _contiguous(_floats("logits", logits, (*targets.shape, V)))
    if targets.dtype.kind not in "iu" or ((targets < -1) | (targets >= V)).any():
        raise ValueError(f"targets must be integers from -1 to {V - 1}")
    counted, n = targets != -1, max((targets != -1).sum(), 1)
    at = np.where(counted, targets, 0)[..., None]
    e, (largest, z) = np.empty_like(logits), np.empty((2, *targets.shape, 1), FLOAT)
    lib.dcp_exp_rows(*map(_pointer, (e, largest, z, logits)), targets.size, V, threads)
    nll = (np.log(z) - (np.take_along_axis(logits, at, -1) - largest))[..., 0]
    return nll[counted].sum() / n, (e, z, at, counted[..., None] / n)


def cross_entropy_backward(dloss, saved):  # scalar -> [..., V]
    e, z, at, weight = saved
    weight = (weight * dloss).astype(FLOAT)
    dlogits = e * (weight / z)  # log_p = log(e / z)
    np.put_along_axis(dlogits, at, np.take_along_axis(dlogits, at, -1) - weight, -1)  # nll = -log_p[target]
    return dlogits


def _dims(name, x, least):
    """The shape of x. Raises ValueError when it has fewer dimensions."""
    if np.ndim(x) < least:
        raise ValueError(f"{name} must have at least {least} dimensions, not {np.ndim(x)}")
    return np.shape(x)


def _floats(name, x, shape=None):
    """x as an array. Raises ValueError when it is not float32, of that shape."""
    x = np.asarray(x)
    if x.dtype.newbyteorder("=") != FLOAT:
        raise ValueError(f"{name} is {x.dtype}, but the kernels in C take float32: convert it, or use NumPy's kernels")
    if shape is not None and x.shape != shape:
        raise ValueError(f"{name} has shape {list(x.shape)}, but must have {list(shape)}")
    return x


def _square(name, x):
    """x [..., T, T] without gaps. Raises ValueError when it is none."""
    *batch, _, T = _dims(name, x, 2)
    return _contiguous(_floats(name, x, (*batch, T, T)))


def _contiguous(x):
    """x, or a copy of it, in C's order and byte order, and aligned."""
    return np.require(x, FLOAT, ("C", "A"))


def _pointer(x):
    return ffi.cast("float *", x.ctypes.data)
