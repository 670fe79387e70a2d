"""Decoding a random GPT-2 small on 2 threads, beside other programs and the limit of the memory's bandwidth.

    python benchmarks/decode.py [ROW ...] [--resume]

Each row is measured on its own and written to benchmarks/results/DATE-decode.json at once. The table and the plots are
made from that file. Rivals run one at a time, interleaved with ours, which start anew beside each rival.

`pruning`: a step waits for weights and for keys and values; dropping shortens only the second wait. A step of `batch`
rows should take

    t = max(weight bytes / bandwidth, 2 * weights * batch / rate) + bytes of live keys and values / bandwidth

where `rate` is that of the matrix products alone with as many rows; bandwidth and rate are of the same run. The
predicted speed-up is t with nothing dropped / t with 80% dropped.
"""

import os

os.environ.pop("OPENBLAS_CORETYPE", None)  # NumPy's BLAS chooses its own settings
os.environ.pop("OPENBLAS_L2_SIZE", None)

import argparse
import datetime
import json
import platform
import subprocess
import sys
from pathlib import Path

import report
from bandwidth import readers
from contest import VERSUS, Setting, between_bandwidths, held, kernel_reader, versus
from rivals import THREADS

from dcp_ref import native
from dcp_ref.bench import parts
from dcp_ref.bench.decoding import sweep
from dcp_ref.bench.timing import interleaved

RESULTS = Path(__file__).parent / "results"
CONTEXTS, SHARES = (64, 256, 512, 900), (0.0, 0.5, 0.8, 0.9)


def calls(timings):
    return {name: timing.calls for name, timing in timings.items()}


def pruning(setting, batch):
    """Seconds of a step with 0% and with 80% dropped, seconds of its matrix products alone, and the bytes read."""
    ours = {name: setting.decoding(name, batch, 880) for name in ("0% dropped", "80% dropped")}
    before = {name: decoding.engine.stats().live_tokens for name, decoding in ours.items()}
    linears = parts.Linears(parts.packed(setting.model), batch, THREADS)
    contenders = {name: decoding.step for name, decoding in ours.items()} | {"linear": linears.step}
    timings = interleaved(contenders, setting.rounds, pause=0.01, title=f"batch {batch}")
    facts = {name: held(decoding, before[name]) for name, decoding in ours.items()}
    return {"batch": batch, "calls": calls(timings), "ours": facts, "weight_bytes": setting.weight_bytes()}


def attention(setting):
    """Seconds and bytes of all layers' attention alone, batch 32, and of each memory reader in the same rounds."""
    rounds = 32  # the slots of a page: so the last page is filled to every degree once
    alone = {str(live): parts.Attention(setting.config, 32, live, rounds + 1, threads=THREADS)
             for live in (256, 896)}
    first = {live: one.bytes_read for live, one in alone.items()}
    with readers(THREADS, kernel=kernel_reader()) as reading:
        contenders = {live: one.step for live, one in alone.items()}
        contenders |= {name: call for name, (call, _) in reading.items()}
        timings = calls(interleaved(contenders, rounds, pause=0.01, title="attention"))
    return {"live": {live: {"calls": timings[live], "bytes": (first[live] + one.bytes_read) / 2}
                     for live, one in alone.items()},
            "readers": {name: {"calls": timings[name], "bytes": size} for name, (_, size) in reading.items()}}


def linear(setting):
    """Seconds, bytes and FLOPs of all matrix products alone; those of 880 rows, a prompt, leave out the head."""
    matrices = parts.packed(setting.model)
    products = {rows: parts.Linears(matrices, rows, THREADS, head=rows < 880) for rows in (1, 32, 64, 880)}
    contenders = {str(rows): product.step for rows, product in products.items()}
    timings = interleaved(contenders, setting.rounds, pause=0.01, title="linear")
    return {"calls": calls(timings), "bytes": products[1].bytes_read,
            "flops": {str(rows): product.flops for rows, product in products.items()}}


def scoring(setting):
    """Seconds of a step with scores that drop nothing, and of one without scores, batch 32."""
    ours = {name: setting.decoding(name, 32, 880) for name in ("no scores", "0% dropped")}
    contenders = {name: decoding.steps(2) for name, decoding in ours.items()}
    return {"calls": calls(interleaved(contenders, 6 * setting.rounds, pause=0.01, title="scoring"))}


def cache_bytes(setting):
    """Bytes of the pages that the cache owns right after a prompt of 900 tokens, batch 32."""
    ours = {name: setting.decoding(name, 32, 900) for name in ("no scores", "80% dropped")}
    return {"bytes": {name: decoding.cache_bytes for name, decoding in ours.items()},
            "share_dropped": ours["80% dropped"].share_dropped}


def rss(setting):
    """The peak memory of a process that loads the model and decodes one sequence after 64 tokens."""
    return {"rss": parts.peak_rss(setting.model, 64, THREADS),
            "weight_bytes": sum(x.nbytes for x in setting.model.params.values())}


def lengths(setting):
    """What `dcp-ref bench` measures, at batch 32; the plot shows it."""
    points = [point for context in CONTEXTS
              for point in sweep(setting.model, context, SHARES, 32, setting.rounds, threads=THREADS)]
    return {"points": [point._asdict() for point in points]}


ROWS = {name: lambda setting, rows=rows: between_bandwidths(versus, setting, rows) for name, rows in VERSUS.items()}
ROWS |= {f"pruning{n}": lambda setting, n=n: between_bandwidths(pruning, setting, n) for n in (32, 64)}
ROWS |= {"attention": attention,
         "linear": lambda setting: between_bandwidths(linear, setting),
         "scoring": scoring, "bytes": cache_bytes, "rss": rss, "lengths": lengths}


def facts(args):
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    cpu = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {"date": str(datetime.date.today()), "cpu": cpu[0] if cpu else platform.processor(),
            "simd": native.simd_level(), "platform": platform.platform(), "threads": THREADS, "rounds": args.rounds,
            "model": "tiny model" if args.tiny else "GPT-2 small", "versions": report.versions()}


def options():
    parser = argparse.ArgumentParser(description="Decoding beside other programs.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"rows to measure: {', '.join(ROWS)} (default: all)")
    parser.add_argument("--resume", action="store_true", help="measure only the rows that the newest results lack")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of each row (default: 5)")
    parser.add_argument("--out", type=Path, help="the JSON file (default: benchmarks/results/DATE-decode.json)")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the benchmark; numbers mean nothing")
    args = parser.parse_args()
    if unknown := set(args.rows) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    return args


def main():
    """Measure the rows, each in a process of its own: threads and memory that a rival leaves must not slow the next."""
    args = options()
    newest = max(RESULTS.glob("*-decode.json"), default=None) if args.resume else None
    path = args.out or newest or RESULTS / f"{datetime.date.today()}-decode.json"
    results = read(path)
    names = [name for name in args.rows or ROWS if not (args.resume and name in results["rows"])]
    if len(names) > 1:
        for name in names:
            options_of_row = ["--rounds", str(args.rounds), "--out", str(path), *["--tiny"] * args.tiny]
            subprocess.run([sys.executable, __file__, name, *options_of_row], check=True)
    elif names:
        results |= {"facts": facts(args)}
        results["rows"][names[0]] = ROWS[names[0]](Setting(args.tiny, args.rounds))
        report.write(results, path)
        print(report.table(results, names[0]), flush=True)
    if len(names) != 1:
        report.write(read(path), path)
        report.plots(read(path), path)
        print(f"written to {path.with_suffix('.md')}")


def read(path):
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": {}}


if __name__ == "__main__":
    main()
