"""Builds the optional C extension; everything else is in pyproject.toml."""

import sysconfig

from setuptools import setup

# One wheel for all versions from 3.11 on; a free-threaded Python has no stable ABI, and setuptools refuses to say so.
ONE_WHEEL = {} if sysconfig.get_config_var("Py_GIL_DISABLED") else {"bdist_wheel": {"py_limited_api": "cp311"}}

setup(cffi_modules=["build_dcp.py:ffibuilder"], options=ONE_WHEEL)
