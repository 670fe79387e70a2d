"""Builds `dcp_ref._native` from csrc/ with cffi; setup.py names it in cffi_modules.

In place, for development:  python setup.py build_ext --inplace
Extra flags, such as sanitizers, come from the usual environment variable:  CFLAGS="-g -fsanitize=address,undefined"
Without a working C compiler the build goes on and the package runs on NumPy.
"""

from pathlib import Path

from cffi import FFI

SOURCES = ["csrc/slots.c", "csrc/cache.c", "csrc/attention.c"]  # relative to setup.py, as setuptools wants them
HEADER = Path(__file__).resolve().parent / "csrc" / "dcp.h"

ffibuilder = FFI()
ffibuilder.cdef(HEADER.read_text(encoding="ascii"))
ffibuilder.set_source(
    "dcp_ref._native",
    '#include <stddef.h>\n#include <stdint.h>\n#include "dcp.h"',
    sources=SOURCES,
    depends=["csrc/dcp.h"],
    include_dirs=["csrc"],
    # GNU C, not strict C11: contraction to fused multiply-add is off there.
    extra_compile_args=["-std=gnu11", "-O3", "-ffp-contract=fast"],
    optional=True,
)
