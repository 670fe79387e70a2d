"""The C files: strict warnings, and the header that cffi can parse."""

import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[1] / "csrc"
LINES = {"decoding": 1100, "training": 500}  # of csrc/: what is to be read
STRICT = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror", "-fsyntax-only"]


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize("openmp", [["-fopenmp"], ["-Wno-unknown-pragmas"]], ids=["openmp", "one thread"])
@pytest.mark.parametrize("path", sorted(CSRC.glob("*.c")), ids=lambda path: path.name)
def test_no_warnings(path, openmp):
    done = subprocess.run(["cc", *STRICT, *openmp, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["dcp.h", "training.h"])
def test_the_headers_are_declarations_only(name):
    assert not [line for line in (CSRC / name).read_text().splitlines() if line.startswith("#")]


def test_it_stays_short():
    lines = {"decoding": 0, "training": 0}
    for path in CSRC.glob("*.[ch]"):
        lines["training" if path.stem == "training" else "decoding"] += len(path.read_text().splitlines())
    assert all(lines[part] <= most for part, most in LINES.items()), lines
