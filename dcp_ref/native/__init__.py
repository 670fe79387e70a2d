"""The C extension behind the interfaces of NumPy files: `cache`, `decoder`, `kernels` are twins of runtime's, `training` of
the root's. Only this room touches cffi. Read extension.py, memory.py, then cache.py and decoder.py; csrc/dcp.h is the
manual."""

from dcp_ref.native.extension import available, simd_level, threads

__all__ = ["available", "simd_level", "threads"]
