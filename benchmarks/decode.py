"""Decoding a random GPT-2 small on 2 threads, beside other programs and the limit of the memory's bandwidth.

    python benchmarks/decode.py [ROW ...] [--resume]

Each row is measured on its own and written to benchmarks/results/DATE-decode-LEVEL.json at once, where LEVEL is the
instruction set; the table and the plots are made from that file. Rivals run one at a time, interleaved with ours, which
start anew beside each rival. DCP_SIMD chooses the instruction set of ours, and of NumPy's BLAS with it; other rivals
use the best that the processor has.
"""

import os

os.environ.pop("OPENBLAS_CORETYPE", None)  # NumPy's BLAS chooses its own settings
os.environ.pop("OPENBLAS_L2_SIZE", None)
os.environ["OPENBLAS_NUM_THREADS"] = "2"  # as all others
if os.environ.get("DCP_SIMD") == "avx2":
    os.environ["OPENBLAS_CORETYPE"] = "Haswell"

import argparse
import datetime
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import alone
import report
import write_up
from contest import Setting, between_bandwidths, versus
from rivals import THREADS
from rows import VERSUS

from dcp_ref import native

ROWS = {name: lambda setting, rows=rows: between_bandwidths(versus, setting, rows) for name, rows in VERSUS.items()}
ROWS |= {f"pruning{n}": lambda setting, n=n: between_bandwidths(alone.pruning, setting, n) for n in (32, 64)}
ROWS |= {"linear": lambda setting: between_bandwidths(alone.linear, setting)}
ROWS |= {"attention": alone.attention, "scoring": alone.scoring, "bytes": alone.cache_bytes, "rss": alone.rss,
         "lengths": alone.lengths}


def facts(args):
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cpu = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {"date": str(datetime.date.today()), "cpu": cpu[0] if cpu else platform.processor(),
            "simd": native.simd_level(), "forced": ", chosen by DCP_SIMD" * bool(os.environ.get("DCP_SIMD")),
            "platform": platform.platform(), "threads": THREADS, "rounds": args.rounds,
            "model": "tiny model" if args.tiny else "GPT-2 small", "versions": write_up.versions()}


def options():
    parser = argparse.ArgumentParser(description="Decoding beside other programs.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"rows to measure: {', '.join(ROWS)} (default: all)")
    parser.add_argument("--resume", action="store_true",
                        help="go on with the file of today or yesterday: measure only the rows that it lacks")
    parser.add_argument("--rounds", type=int, default=3,
                        help="timed rounds of each row, three times as many where calls are short (default: 3)")
    parser.add_argument("--out", type=Path, help="the JSON file (default: benchmarks/results/DATE-decode-LEVEL.json)")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the benchmark; numbers mean nothing")
    args = parser.parse_args()
    if unknown := set(args.rows) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    return args


def main():
    """Measure the rows, each in a process of its own: threads and memory that a rival leaves must not slow the next."""
    args = options()
    path = args.out or write_up.file_of(datetime.date.today(), native.simd_level(), args.resume)
    results = read(path)
    names = [name for name in args.rows or ROWS if not (args.resume and name in results["rows"])]
    if len(names) > 1:
        for name in names:
            options_of_row = ["--rounds", str(args.rounds), "--out", str(path), *["--tiny"] * args.tiny]
            subprocess.run([sys.executable, __file__, name, *options_of_row], check=True)
    elif names:
        measure(args, names[0], results)
        write_up.write(results, path)
        print(report.table(results, names[0]), flush=True)
    if len(names) != 1:
        write_up.write(read(path), path)
        write_up.plots(read(path), path)
        print(f"written to {path.with_suffix('.md')}")


def measure(args, name, results):
    """Put a row into the results, with the seconds that it took."""
    began = time.perf_counter()
    raw = ROWS[name](Setting(args.tiny, args.rounds))
    results["rows"][name] = raw | {"seconds": time.perf_counter() - began}
    results["facts"] = facts(args)


def read(path):
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": {}}


if __name__ == "__main__":
    main()
