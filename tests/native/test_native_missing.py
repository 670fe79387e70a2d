"""What is said where the C extension cannot be used: why, where it was looked for, and what to do."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dcp_ref import native

PACKAGE = Path(native.__file__).parent.parent
BUILT = sorted(PACKAGE.glob("_native*"))
needs_extension = pytest.mark.skipif(not native.available(), reason="the C extension is not built")


def copied(directory, extension=False):
    """A copy of the package in a directory."""
    ignored = shutil.ignore_patterns("models", "__pycache__", *[] if extension else ["_native*"])
    shutil.copytree(PACKAGE, directory / "dcp_ref", ignore=ignored)
    return directory


ALONE = "sys.meta_path[:] = [f for f in sys.meta_path if 'Editable' not in repr(f)]; "  # of an editable install: ours
INFO = "import runpy, sys; {}runpy.run_module('dcp_ref', run_name='__main__')"


def info(directory, *paths, alone=True):
    """What `python -m dcp_ref info` says in a directory, with more of them on sys.path."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, "-c", INFO.format(ALONE if alone else ""), "info"]
    done = subprocess.run(command, cwd=directory, env=environment, check=True, capture_output=True, text=True)
    return next(line for line in done.stdout.splitlines() if line.startswith("simd"))


def installed_editably():
    """Whether an editable install finds the package that is tested: a copy of it is not what was installed."""
    finders = [finder for finder in sys.meta_path if "Editable" in repr(finder)]
    return any(str(PACKAGE) in getattr(sys.modules[finder.__module__], "MAPPING", {}).values() for finder in finders)


def test_where_it_was_looked_for(tmp_path):
    clone = copied(tmp_path)
    line = info(clone)
    assert "not built" in line and str(clone / "dcp_ref") in line and "reinstall" in line and "hides" not in line


@needs_extension
def test_a_clone_that_hides_the_installed_package(tmp_path):
    (tmp_path / "clone").mkdir()
    clone, installed = copied(tmp_path / "clone"), copied(tmp_path / "installed", extension=True)
    line = info(clone, installed)
    assert f"{clone / 'dcp_ref'}, which hides the installed package in {installed / 'dcp_ref'}" in line
    assert "not built" not in info(tmp_path, installed) and "none" not in info(tmp_path, installed)


@needs_extension
@pytest.mark.skipif(not installed_editably(), reason="the package that is tested is not the one installed editably")
def test_the_extension_of_an_editable_install_is_not_used_by_another_clone(tmp_path):
    """It may be of another version, with other arguments."""
    clone = copied(tmp_path)
    assert f"{clone / 'dcp_ref'}, which hides the installed package in {PACKAGE}" in info(clone, alone=False)


@needs_extension
def test_an_extension_that_cannot_be_loaded(tmp_path):
    clone = copied(tmp_path)
    (clone / "dcp_ref" / BUILT[0].name).write_bytes(b"no library")
    line = info(clone)
    assert "cannot be loaded" in line and str(clone / "dcp_ref" / BUILT[0].name) in line and "not built" not in line


def test_the_command_as_a_module():
    done = subprocess.run([sys.executable, "-m", "dcp_ref", "--version"], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("dcp-ref ")


def test_importing_the_package_does_not_load_the_extension():
    """Only an engine, or kernels that are asked for, do."""
    code = "import sys, dcp_ref; print([m for m in sys.modules if m.startswith(('dcp_ref._', 'dcp_ref.native'))])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
