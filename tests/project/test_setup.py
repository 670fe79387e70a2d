"""What kind of wheel is built, on both kinds of Python."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """import sys, sysconfig
from distutils.core import run_setup
sysconfig.get_config_vars()["Py_GIL_DISABLED"] = int(sys.argv[1])
built = run_setup("setup.py", ["--quiet", "bdist_wheel"], stop_after="commandline")
wheel = built.get_command_obj("bdist_wheel")
wheel.ensure_finalized()  # where setuptools refuses what cannot be
print(bool(wheel.py_limited_api), *(extension.py_limited_api for extension in built.ext_modules))
"""


@pytest.mark.parametrize(("free_threaded", "limited"), [(0, "True True"), (1, "False False")])
def test_a_free_threaded_python_has_no_stable_abi(free_threaded, limited):
    done = subprocess.run([sys.executable, "-c", "import setuptools\n" + SCRIPT, str(free_threaded)], check=False,
                          capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2] == limited
