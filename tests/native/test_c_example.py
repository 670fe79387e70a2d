"""examples/decode_in_c: a model decoded from C alone gives the ids that `generate` gives."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import random_model

from dcp_ref import Config, generate, load, native, save
from dcp_ref.native.extension import ffi, lib

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "decode_in_c"
STRICT = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror", "-Wno-unknown-pragmas"]
LINES = 120  # of the program: what is read at once
CONFIGS = {  # what the shipped model has none of; and a plain GPT-2
    "any": Config(vocab_size=41, n_positions=40, n_embd=24, n_layer=3, n_head=2, n_inner=20, int_n_embd=3, int_delay=2,
                  propagate_in_depth=True, activation_function="relu", tie_word_embeddings=False,
                  scale_attn_by_inverse_layer_idx=True, layer_norm_epsilon=1e-3, eos_token_id=None),
    "plain": Config(vocab_size=41, n_positions=40, n_embd=16, n_layer=2, n_head=1, activation_function="gelu",
                    eos_token_id=None)}


def run(*command, **options):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    path = tmp_path_factory.mktemp("example") / "decode"
    run("cc", *STRICT, "-I", ROOT / "csrc", EXAMPLE / "decode.c", *sorted((ROOT / "csrc").glob("*.c")),
        "-lm", "-lpthread", "-o", path)
    return path


def ids_in_c(program, name, prompt, n, directory):
    """What the program prints for a model that save.py wrote."""
    file = directory / "model.bin"
    run(sys.executable, EXAMPLE / "save.py", name, file, env=os.environ | {"PYTHONPATH": str(ROOT)})
    return [int(i) for i in run(program, file, n, *prompt).split()]


def test_the_shipped_model(program, tmp_path):
    model = load("tiny")
    prompt, n = model.tokenizer.encode("The old man looked at the sea"), 60
    [expected] = generate(model, [prompt], n, temperature=0)
    assert ids_in_c(program, "tiny", prompt, n, tmp_path) == expected.ids


@pytest.mark.parametrize("name", CONFIGS)
def test_other_models(program, tmp_path, name):
    model, prompt = random_model(CONFIGS[name], seed=1, beta=0.5), [3, 1, 40, 7]
    save(model, tmp_path / "model")
    [expected] = generate(model, [prompt], 30, temperature=0)
    assert ids_in_c(program, tmp_path / "model", prompt, 30, tmp_path) == expected.ids


def test_what_cannot_be_decoded(program, tmp_path):
    file = tmp_path / "short.bin"
    file.write_bytes(np.ones(10, np.uint64).tobytes() + bytes(20))
    for arguments, message in (([], "give a model's file"), ([tmp_path / "none", 1, 2], "cannot be read"),
                               ([file, 1, 2], "too short")):
        done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)
        assert done.returncode == 1 and message in done.stderr


def test_the_program_stays_short():
    assert len((EXAMPLE / "decode.c").read_text().splitlines()) <= LINES


@pytest.mark.skipif(not native.available(), reason="the C extension is not built")
@given(st.integers(0, 2**32 - 1), st.integers(1, 70), st.integers(1, 70))
def test_packing_in_c_is_packing_in_python(seed, n_in, n_out):
    from dcp_ref.native import kernels

    w = np.random.default_rng(seed).normal(size=(n_in, n_out)).astype(np.float32)
    bias, expected = w[0].copy(), kernels.pack(w)
    panels = np.full(lib.dcp_matrix_bytes(n_in, n_out) // 4, np.nan, np.float32)
    matrix, (own, weights, added) = ffi.new("dcp_matrix *"), (ffi.from_buffer("float[]", x) for x in (panels, w, bias))
    lib.dcp_matrix_pack(matrix, own, weights, n_in, n_out, added)
    np.testing.assert_array_equal(panels, expected.panels.ravel())
    assert (matrix.n_in, matrix.n_out, matrix.type) == (n_in, n_out, lib.DCP_FLOAT32)
    assert (matrix.panel, matrix.bias, matrix.scale) == (own, added, ffi.NULL)
