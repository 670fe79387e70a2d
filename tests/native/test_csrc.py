"""The C files: strict warnings, headers that cffi can parse, names that do not leak."""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dcp_ref import native
from dcp_ref.native import extension

CSRC = Path(__file__).resolve().parents[2] / "csrc"
FUZZER = CSRC.parent / "tests" / "fuzz" / "decode.c"  # `make fuzz` compiles it, which takes minutes
MANUALS = ("dcp.h", "kernels.h", "training.h")  # what a C caller includes
LINES = 250  # of a file: what is read at once
STRICT = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror", "-fsyntax-only"]
DEFINED = re.compile(r"^(?:KERNEL\(extern, (\w+),|(?!static|typedef|INLINE|KERNEL)\w[\w ]*[ *](\w+)\()[^;]*\)\n\{",
                     re.MULTILINE)


@pytest.mark.parametrize("compiler", ["cc", "clang"])
@pytest.mark.parametrize("openmp", [["-fopenmp"], ["-Wno-unknown-pragmas"]], ids=["openmp", "one thread"])
@pytest.mark.parametrize("path", [*sorted(CSRC.glob("*.c")), FUZZER],
                         ids=lambda path: "/".join(path.parts[-2:]))
def test_no_warnings(path, openmp, compiler):
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    command = [compiler, *STRICT, *openmp, "-I", str(CSRC), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", MANUALS)
def test_the_headers_are_declarations_only(name):
    assert not [line for line in (CSRC / name).read_text().splitlines() if line.startswith("#")]


def test_files_stay_short():
    lines = {path.name: len(path.read_text().splitlines()) for path in CSRC.glob("*.[ch]")}
    assert max(lines.values()) <= LINES, lines


def test_only_the_manuals_names_begin_with_dcp():
    manuals = "".join((CSRC / name).read_text() for name in MANUALS)
    declared = set(re.findall(r"\b(dcp_\w+)\(", manuals))
    defined = {"".join(names) for path in CSRC.glob("*.c") for names in DEFINED.findall(path.read_text())}
    assert {name for name in defined if name.startswith("dcp_")} == declared
    assert {"compact", "multiply", "judge", "transpose"} < defined


@pytest.mark.skipif(not native.available(), reason="the C extension is not built")
@pytest.mark.parametrize("name", ["dcp_decode", "compact", "multiply", "add_live", "transpose"])
def test_names_do_not_leak_from_the_extension(name):
    library = ctypes.CDLL(extension.importlib.import_module(extension.NAME).__file__)
    assert hasattr(library, "PyInit__native")
    assert not hasattr(library, name)
