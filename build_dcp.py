"""Builds `dcp_ref._native` from csrc/ with cffi; setup.py names it in cffi_modules.

In place, for development:  python setup.py build_ext --inplace
Extra flags, such as sanitizers, come from the usual environment variable:  CFLAGS="-g -fsanitize=address,undefined"
Without a working C compiler the build goes on and the package runs on NumPy.
"""

import platform
import sys
from pathlib import Path

from cffi import FFI

# Relative to setup.py, as setuptools wants them.
SOURCES = [f"csrc/{name}.c" for name in (
    "slots", "sequence", "cache", "judge", "attend", "step", "decode", "linear", "layers", "threads",
    "training_attention", "training_lanes", "training_mask", "training_elementwise")]
HEADERS = [f"csrc/{name}.h" for name in ("kernels", "dcp", "training")]
OPENMP = ["-fopenmp"] if sys.platform == "linux" else []  # elsewhere the compiler may not have it: one thread
EXPORTS = ["-Wl,--version-script=csrc/exports.map"] if sys.platform == "linux" else []
# Where the loader picks AVX-512, in full width: twelve rows of sums then fit the registers.
WIDE = ["-mprefer-vector-width=512"] if platform.machine() == "x86_64" else []

ffibuilder = FFI()
for header in HEADERS:
    ffibuilder.cdef((Path(__file__).resolve().parent / header).read_text(encoding="ascii"))
ffibuilder.set_source(
    "dcp_ref._native",
    '#include <stddef.h>\n#include <stdint.h>\n#include "kernels.h"\n#include "dcp.h"\n#include "training.h"',
    sources=SOURCES,
    depends=[*HEADERS, "csrc/common.h", "csrc/tile.h", "csrc/step.h", "csrc/training_lanes.h", "csrc/exports.map"],
    include_dirs=["csrc"],
    # GNU C: strict C11 would not contract to fused multiply-add. Without traps the compiler may compute both sides of a
    # conditional expression. Hidden: internal names have no prefix, and other libraries must not see them.
    extra_compile_args=["-std=gnu11", "-O3", "-ffp-contract=fast", "-fno-trapping-math", "-fvisibility=hidden", *WIDE,
                        *OPENMP],
    extra_link_args=[*EXPORTS, *OPENMP],
    optional=True,
)
