"""The C files: strict warnings, and the header that cffi can parse."""

import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
LINES = 250  # of a file: what is read at once
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


def test_files_stay_short():
    lines = {path.name: len(path.read_text().splitlines()) for path in CSRC.glob("*.[ch]") if path.stem != "training"}
    assert max(lines.values()) <= LINES, lines
