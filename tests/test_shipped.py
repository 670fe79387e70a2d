"""benchmarks/shipped.py: what it refuses."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dcp_ref

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def run(tmp_path):
    """Runs a copy of it, which writes into the copy's directory."""
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    script = shutil.copy(ROOT / "benchmarks" / "shipped.py", tmp_path / "benchmarks")
    shutil.copy(ROOT / "README.md", tmp_path)
    environment = os.environ | {"PYTHONPATH": str(Path(dcp_ref.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    return lambda *arguments: subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True,
                                             check=False, env=environment)


def test_a_text_that_is_too_short(run, tmp_path):
    (tmp_path / "empty.txt").touch()
    done = run("--text", str(tmp_path / "empty.txt"))
    assert done.returncode == 2 and "empty.txt: 0 tokens are too few for a context of 512" in done.stderr
