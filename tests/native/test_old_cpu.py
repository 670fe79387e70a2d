"""It starts on a processor without AVX, and computes the same there to rounding."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from models import moderate_model
from thread_tools import DEADLINE, SANITIZED
from tolerances import STORED

import dcp_ref
from dcp_ref import Engine, native
from dcp_ref.runtime.precision import STORAGES

CODE = """
import sys
import numpy as np
from models import moderate_model
from dcp_ref import Engine
from dcp_ref import native
from dcp_ref.runtime.precision import STORAGES

print(native.simd_level())
rows = []
for storage in STORAGES:
    engine = Engine(moderate_model(beta=100.0), "native", weights=storage, kv=storage)
    sequence = engine.new_sequence()
    for piece in (range(45), [7]):
        rows += engine.feed([sequence], [list(piece)], logits="all")
np.save(sys.argv[1], np.concatenate(rows))
"""


def test_the_oldest_64_bit_processors(tmp_path):
    """Nehalem: SSE4.2, no AVX, no FMA, no float16 conversions. Nothing is dropped by a score close to 0."""
    if platform.machine() != "x86_64" or shutil.which("qemu-x86_64") is None:
        pytest.skip("needs x86-64 and qemu-x86_64, of the package qemu-user")
    if not native.available() or SANITIZED:
        pytest.skip("needs the C extension, without a sanitizer")
    path = os.pathsep.join([str(Path(dcp_ref.__file__).parents[1]), str(Path(__file__).parents[1] / "tools")])

    def run(*arguments):
        command = ["qemu-x86_64", "-cpu", "Nehalem", sys.executable, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False,
                              env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "2"})

    if run("-c", "import numpy").returncode:
        pytest.skip("NumPy itself does not start there")
    done = run("-c", CODE, str(tmp_path / "there.npy"))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "baseline\n"
    there = iter(np.split(np.load(tmp_path / "there.npy"), 3))
    for storage in STORAGES:
        engine = Engine(moderate_model(beta=100.0), "native", weights=storage, kv=storage)
        sequence = engine.new_sequence()
        here = np.concatenate([engine.feed([sequence], [list(p)], logits="all")[0] for p in (range(45), [7])])
        np.testing.assert_allclose(next(there), here, **STORED[storage][1])
