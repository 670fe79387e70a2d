"""Every instruction set that the kernels are compiled for and this processor has: each is chosen in turn."""

import os
import subprocess
import sys

import numpy as np
import pytest
from models import moderate_model
from thread_tools import SANITIZED, run_python
from tolerances import KERNEL_SUM, STORED, TRAINING_KERNELS

from dcp_ref import Engine, native
from dcp_ref.block import NUMPY
from dcp_ref.runtime import kernels
from dcp_ref.runtime.precision import STORAGES

if not native.available():
    pytest.skip("the C extension is not built", allow_module_level=True)

from dcp_ref.native import kernels as native_kernels
from dcp_ref.native import training
from dcp_ref.native.extension import SIMD_LEVELS, choose_simd

LEVEL = "from dcp_ref import native; print(native.simd_level())"
HERE = SIMD_LEVELS[SIMD_LEVELS.index(native.simd_level()) :]
ROWS = [1, 2, 3, 4, 5, 7, 11, 12, 13, 47, 48, 192, 193, 400]  # tiles, copies of columns, blocks
IDS = np.random.default_rng(1).integers(0, 300, 100).tolist()
F = np.float32


@pytest.fixture(params=SIMD_LEVELS)
def level(request):
    if request.param not in HERE:
        pytest.skip(f"this processor or build has no {request.param}")
    choose_simd(request.param)
    yield request.param
    choose_simd(HERE[0])


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(("n_in", "n_out"), [(1100, 70), (1030, 1024)])
def test_linear(level, storage, n_in, n_out):
    """Close to NumPy; and a row's bits do not depend on the rows beside it, whatever tiles and blocks they make."""
    assert native.simd_level() == level
    rng = np.random.default_rng(0)
    x, w, bias = rng.normal(size=(400, n_in)), rng.normal(size=(n_in, n_out)) / 8, rng.normal(size=n_out)
    x, add = x.astype(F), rng.normal(size=(400, n_out)).astype(F)
    packed, plain = (module.pack(w, bias, storage) for module in (native_kernels, kernels))
    whole = native_kernels.linear(x, packed, add)
    np.testing.assert_allclose(whole, kernels.linear(x, plain, add), rtol=KERNEL_SUM["rtol"], atol=1e-4)
    for rows in ROWS:
        last = slice(400 - rows, 400)
        np.testing.assert_array_equal(native_kernels.linear(x[last], packed, add[last]), whole[last])


@pytest.mark.parametrize("storage", STORAGES)
def test_a_sequence(level, storage):
    """Alone and in pieces: the same bits, and close to NumPy. Nothing is dropped by a score close to 0."""
    results = []
    for backend, pieces in (("native", [IDS]), ("native", [IDS[:61], IDS[61:62], IDS[62:]]), ("numpy", [IDS])):
        engine = Engine(moderate_model(beta=100.0), backend, weights=storage, kv=storage)
        sequence = engine.new_sequence()
        results.append(np.concatenate([engine.feed([sequence], [p], logits="all")[0] for p in pieces]))
    np.testing.assert_array_equal(results[1], results[0])
    np.testing.assert_allclose(results[0], results[2], **STORED[storage][1])


def test_training(level):
    rng = np.random.default_rng(0)
    q, k, v, dy = rng.normal(size=(4, 1, 2, 70, 40)).astype(F)
    log_i = np.where(np.tril(rng.random((1, 70, 70)) < 0.9) | np.eye(70, dtype=bool), 0, -np.inf).astype(F)
    results = []
    for module in (training.kernels(threads=1), NUMPY):
        y, saved = module.attention(q, k, v, log_i, 40**-0.5)
        results.append([y, *module.attention_backward(dy, saved)])
    for got, expected in zip(*results, strict=True):
        np.testing.assert_allclose(got, expected, **TRAINING_KERNELS)


@pytest.mark.parametrize("name", HERE)
def test_the_environment_chooses(name):
    assert run_python(LEVEL, DCP_SIMD=name) == f"{name}\n"


def test_nothing_is_chosen():
    assert run_python(LEVEL, DCP_SIMD="").strip() in SIMD_LEVELS


@pytest.mark.parametrize(("name", "message"), [
    ("sse9", "DCP_SIMD must be one of avx512f, avx2, baseline, or unset for the best, not 'sse9'"),
    *[(name, f"DCP_SIMD={name}: this processor, or this build") for name in SIMD_LEVELS if name not in HERE]])
def test_what_is_not_there(name, message):
    with pytest.raises(ValueError, match=message.split(",")[0]):
        choose_simd(name)
    if SANITIZED:
        return
    done = subprocess.run([sys.executable, "-c", LEVEL], env=os.environ | {"DCP_SIMD": name}, capture_output=True,
                          text=True, check=False)
    assert done.returncode != 0 and message in done.stderr
    assert native.simd_level() == HERE[0]
