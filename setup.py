"""Builds the optional C extension; everything else is in pyproject.toml."""

from setuptools import setup

setup(
    cffi_modules=["build_dcp.py:ffibuilder"],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
