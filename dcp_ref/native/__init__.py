"""The C extension, behind the interfaces of NumPy files; only this room touches cffi.

`cache`, `decoder` and `kernels` are the twins of runtime's files, `training` of files at the root. Read extension.py
and memory.py, then cache.py and decoder.py, beside csrc/dcp.h, which is the manual.
"""

from dcp_ref.native.extension import available, missing, simd_level, threads

__all__ = ["available", "missing", "simd_level", "threads"]
