"""alpha_sigmoid beside entmax's bisection (50 steps, two classes): 512 x 512 float32 scores, one thread each.

The two take turns; the table has medians. Writes benchmarks/results/DATE-alpha_sigmoid.md.
"""

import datetime
import os
import platform
import statistics
import time
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import torch
from entmax import entmax_bisect

from dcp_ref import alpha_sigmoid
from dcp_ref.analysis.table import markdown

ALPHAS = (1 + 1e-6, 1.1, 1.5, 2, 3, 4, 8, 16, 64)
RUNS = 7


def seconds(function, *args, **kwargs):
    began = time.perf_counter()
    function(*args, **kwargs)
    return time.perf_counter() - began


def compare(alpha):
    """Median seconds of ours and of entmax, on scores spread over the range where the result is neither 0 nor 1."""
    s = (np.random.default_rng(0).normal(size=(512, 512)) * min(1, 0.5 / (alpha - 1))).astype(np.float32)
    two = torch.stack([torch.tensor(s), torch.zeros(s.shape)], dim=-1)
    times = [
        (seconds(alpha_sigmoid, s, alpha), seconds(entmax_bisect, two, alpha=alpha, dim=-1, n_iter=50))
        for _ in range(RUNS)
    ]
    return [statistics.median(column) for column in zip(*times, strict=True)]


torch.set_num_threads(1)
rows = []
for alpha in ALPHAS:
    ours, theirs = compare(alpha)
    rows.append((repr(alpha), f"{ours * 1e3:.1f}", f"{theirs * 1e3:.1f}", f"{theirs / ours:.1f}"))
table = markdown(("alpha", "dcp_ref, ms", "entmax_bisect, ms", "times faster"), rows)
print(table)
heading = f"alpha_sigmoid, 512 x 512 float32, 1 thread, medians of {RUNS}; {platform.machine()}"
out = Path(__file__).parent / "results" / f"{datetime.date.today()}-alpha_sigmoid.md"
out.parent.mkdir(exist_ok=True)
out.write_text(f"{heading}\n\n{table}\n", encoding="utf-8")
print(f"written to {out}")
