"""Arrays that the kernels of training in C are given: each is read right, or refused by name; none ends the process."""

import math

import numpy as np
import pytest
from models import SMALL
from tolerances import TRAINING_KERNELS

from dcp_ref import loss_and_grads
from dcp_ref import native as runtime_native
from dcp_ref.block import NUMPY
from dcp_ref.checkpoints import weights

if not runtime_native.available():
    pytest.skip("the C extension is not built", allow_module_level=True)

from dcp_ref.native import training as native

C = native.kernels(threads=1)
F = np.float32


def misaligned(x):
    room = np.empty(x.nbytes + 1, np.uint8)
    copy = room[1:].view(x.dtype).reshape(x.shape)
    copy[...] = x
    return copy


def strided(x):
    room = np.full((*x.shape[:-1], 2 * x.shape[-1]), np.nan, x.dtype)
    room[..., ::2] = x
    return room[..., ::2]


def read_only(x):
    copy = x.copy()
    copy.flags.writeable = False
    return copy


def overlapping(x):
    """Rows a byte more than four floats apart: no whole number of floats."""
    room = np.zeros(x.nbytes + x.size, np.uint8)
    view = np.ndarray(x.shape, x.dtype, room, strides=(*x.strides[:-2], x.strides[-2] + 1, x.strides[-1])) if (
        x.ndim > 1 and x[..., 0].size == x.shape[-2]) else np.ndarray(x.shape, x.dtype, room)
    view[...] = x
    return view


LAYOUTS = {
    "strided": strided, "misaligned": misaligned, "read-only": read_only, "Fortran": np.asfortranarray,
    "reversed": lambda x: np.flip(np.flip(x).copy()), "bytes swapped": lambda x: x.astype(x.dtype.newbyteorder()),
    "subclass": lambda x: x.view(np.memmap), "overlapping": overlapping,
    "turned": lambda x: x.swapaxes(-1, -2).copy().swapaxes(-1, -2) if x.ndim > 1 else x,
}
rng = np.random.default_rng(0)
Q, K, V, DY = rng.normal(size=(4, 2, 3, 40, 5)).astype(F)
LOG_I = np.log(np.tril(rng.random((2, 40, 40))).astype(F) + 0.1)
S, LOGITS = rng.normal(size=(2, 40, 40)).astype(F), rng.normal(size=(2, 40, 7)).astype(F)
TARGETS = rng.integers(-1, 7, (2, 40))


def attention(kernels, **arrays):
    given = {"q": Q, "k": K, "v": V, "log_i": LOG_I, "dy": DY} | arrays
    y, saved = kernels.attention(given["q"], given["k"], given["v"], given["log_i"], 0.4)
    return [y, *kernels.attention_backward(given["dy"], saved)]


def log_mask(kernels, s=S, dlog_i=S):
    log_i, saved = kernels.log_mask(s, 1.5, 1)
    return [log_i, kernels.log_mask_backward(dlog_i, saved)]


def activation(kernels, x=S):
    return list(kernels.activation(x, "gelu_new"))


def cross_entropy(kernels, logits=LOGITS):
    loss, saved = kernels.cross_entropy(logits, TARGETS)
    return [loss, kernels.cross_entropy_backward(1.0, saved)]


ARRAYS = [(attention, "q", Q), (attention, "k", K), (attention, "v", V), (attention, "log_i", LOG_I),
          (attention, "dy", DY), (log_mask, "s", S), (log_mask, "dlog_i", S), (activation, "x", S),
          (cross_entropy, "logits", LOGITS)]
each_array = pytest.mark.parametrize(("call", "name", "x"), ARRAYS, ids=[name for _, name, _ in ARRAYS])


@each_array
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_is_read_right(call, name, x, layout):
    given = LAYOUTS[layout](x)
    np.testing.assert_array_equal(given, x)
    for got, expected in zip(call(C, **{name: given}), call(C), strict=True):
        np.testing.assert_array_equal(got, expected)
    for got, expected in zip(call(C), call(NUMPY), strict=True):
        np.testing.assert_allclose(got, expected, **TRAINING_KERNELS)


@each_array
@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32, np.complex64, bool, object])
def test_another_type_is_refused_by_name(call, name, x, dtype):
    with pytest.raises(ValueError, match=rf"^{name} is {np.dtype(dtype)}, .* take float32: convert it"):
        call(C, **{name: x.real.astype(dtype)})


@each_array
@pytest.mark.parametrize("change", [lambda x: x[:1], lambda x: x[..., :-1, :], lambda x: x[..., :-1], lambda x: x[None],
                                    lambda x: x[0], lambda x: x.ravel()[:1], lambda x: x[..., :0], lambda x: x.sum()])
def test_another_shape_is_refused_by_name_or_right(call, name, x, change):
    """One array alone of another shape fits no other; what has no other to fit is computed."""
    given = change(x)
    if call is activation:
        expected = NUMPY.activation(given, "gelu_new")
        for got, wanted in zip(C.activation(given, "gelu_new"), expected, strict=True):
            np.testing.assert_allclose(got, wanted, **TRAINING_KERNELS)
        return
    if name == "s" and given.ndim > 1 and given.shape[-1] == given.shape[-2]:
        given = given[..., :-1]
    with pytest.raises(ValueError, match=r" has shape .* must have |must have at least \d dimensions|targets must be"):
        call(C, **{name: given})


@pytest.mark.parametrize("shape", [(0, 1, 3, 2), (1, 0, 3, 2), (1, 1, 0, 2), (1, 1, 3, 0)])
def test_arrays_of_no_size(shape):
    B, _, T, _ = shape
    x, square = np.zeros(shape, F), np.zeros((B, T, T), F)
    y, saved = C.attention(x, x, x, square, 1.0)
    gradients = C.attention_backward(x, saved)
    assert [a.shape for a in (y, *gradients)] == [shape] * 4 + [square.shape] and not gradients[-1].any()
    log_i, saved = C.log_mask(square, 2.0)
    assert log_i.shape == C.log_mask_backward(square, saved).shape == square.shape
    assert C.activation(x, "gelu_new")[0].shape == shape
    assert C.cross_entropy(np.zeros((B, T, 2), F), np.full((B, T), -1))[0] == 0


def test_inputs_that_are_one_number_repeated():
    """Broadcast arrays: all strides are 0."""
    one = np.broadcast_to(F(0.5), (2, 3, 40, 5))
    for got, expected in zip(attention(C, q=one, k=one, v=one), attention(NUMPY, q=one, k=one, v=one), strict=True):
        np.testing.assert_allclose(got, expected, **TRAINING_KERNELS)


def test_what_is_saved_is_checked_too():
    _, saved = C.attention(Q, K, V, LOG_I, 0.4)
    for n, name in enumerate(["q", "k", "v", "log_i", None, "y", "log_sum"]):
        if name is not None:
            for other in (saved[n][:1], saved[n].astype(np.float64)):
                with pytest.raises(ValueError, match=r"has shape|take float32"):
                    C.attention_backward(DY, (*saved[:n], other, *saved[n + 1 :]))
    with pytest.raises(TypeError):
        C.attention_backward(DY, saved[:3])
    slope = C.log_mask(S, 2.0)[1]
    for other in (slope[..., :-1], slope[0, 0], slope.astype(np.float64)):
        with pytest.raises(ValueError, match="saved "):
            C.log_mask_backward(S, other)


@pytest.mark.parametrize("alpha", [0.5, -1.0, math.nan, -math.inf])
def test_an_alpha_out_of_range(alpha):
    with pytest.raises(ValueError, match=r"alpha must be in \[1, inf\]"):
        C.log_mask(S, alpha)


@pytest.mark.parametrize("delay", [-1, 1.5, None, "1"])
def test_a_delay_out_of_range(delay):
    with pytest.raises(ValueError, match="delay must be an integer of at least 0"):
        C.log_mask(S, 2.0, delay)
    assert not C.log_mask(S, 2.0, 10**30)[0].any()


@pytest.mark.parametrize("targets", [TARGETS - 1, TARGETS + 1, TARGETS.astype(float), TARGETS == 0])
def test_targets_out_of_range(targets):
    with pytest.raises(ValueError, match="targets must be integers from -1 to 6"):
        C.cross_entropy(LOGITS, targets)


@pytest.mark.parametrize("threads", [-1, 1.5, None])
def test_threads_out_of_range(threads):
    with pytest.raises(ValueError, match="threads must be an integer of at least 0"):
        native.kernels(threads)


@pytest.mark.parametrize("name", ["wte.weight", "h.0.attn.int_bias", "ln_f.bias"])
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_a_model_of_another_type_is_refused_before_anything_is_computed(monkeypatch, name, dtype):
    params = weights.init_params(SMALL, 0)
    params[name] = params[name].astype(dtype)
    ids = np.ones((1, 3), int)
    monkeypatch.setattr("dcp_ref.model._gpt2", None)
    with pytest.raises(ValueError, match=rf"^{name} is {np.dtype(dtype)}, .* take float32: convert it, or use NumPy's"):
        loss_and_grads(params, ids, ids, SMALL, 2.0, 0.1, C)


def test_a_model_of_swapped_bytes_is_computed():
    params = weights.init_params(SMALL, 0)
    ids = np.ones((1, 3), int)
    swapped = {name: p.astype(p.dtype.newbyteorder()) for name, p in params.items()}
    assert loss_and_grads(swapped, ids, ids, SMALL, 2.0, 0.1, C)[0] == pytest.approx(
        loss_and_grads(params, ids, ids, SMALL, 2.0, 0.1, C)[0])
