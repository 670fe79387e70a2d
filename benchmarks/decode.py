"""The benchmark of the README: decoding a random GPT-2 small, 2 threads, beside other programs and the memory's limit.

    python benchmarks/decode.py [ROW ...] [--resume]

Each row is measured on its own and written to benchmarks/results/DATE-decode.json at once; the table and the plots are
made of that file. Rivals run interleaved with ours, one at a time, each with ours started anew.

`pruning`: dropping makes a step faster only as far as keys and values are what it waits for. With the bandwidth, and
the rate of the matrix products alone with as many rows, both of the same run, a step of `batch` rows should take

    t = max(weight bytes / bandwidth, 2 * weights * batch / rate) + bytes of live keys and values / bandwidth

and the speed-up that is predicted is t with nothing dropped / t with 80% dropped.
"""

import os

os.environ.pop("OPENBLAS_CORETYPE", None)  # NumPy as it comes
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

from dcp_ref import Engine, native
from dcp_ref.bench import parts as bench_parts
from dcp_ref.bench.decoding import sweep
from dcp_ref.bench.timing import interleaved

RESULTS = Path(__file__).parent / "results"
CONTEXTS, SHARES = (64, 256, 512, 900), (0.0, 0.5, 0.8, 0.9)


def calls(timings):
    return {name: timing.calls for name, timing in timings.items()}


def pruning(setting, batch):
    """Seconds of a step with nothing and with 80% dropped, of the matrix products alone, and what each reads."""
    ours = {name: setting.decoding(name, batch, 880) for name in ("0% dropped", "80% dropped")}
    before = {name: decoding.engine.stats().live_tokens for name, decoding in ours.items()}
    linears = bench_parts.Linears(ours["0% dropped"].engine, batch)
    contenders = {name: decoding.step for name, decoding in ours.items()} | {"linear": linears.step}
    timings = interleaved(contenders, setting.rounds, pause=0.01, title=f"batch {batch}")
    facts = {name: held(decoding, before[name]) for name, decoding in ours.items()}
    return {"batch": batch, "calls": calls(timings), "ours": facts, "weight_bytes": setting.weight_bytes()}


def attention(setting):
    """Seconds of all layers' attention alone, batch 32, and the keys and values that it reads; and, in the same rounds,
    of each way to read memory, and its bytes."""
    rounds = 32  # as a page has slots: the last one is filled to every degree once
    alone = {str(live): bench_parts.Attention(setting.config, 32, live, rounds + 1, threads=THREADS)
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
    """Seconds of all matrix products alone, bytes and FLOPs; with 880 rows, a prompt, without the head."""
    engine = Engine(setting.model, threads=THREADS)
    parts = {rows: bench_parts.Linears(engine, rows, head=rows < 880) for rows in (1, 32, 64, 880)}
    contenders = {str(rows): part.step for rows, part in parts.items()}
    timings = interleaved(contenders, setting.rounds, pause=0.01, title="linear")
    return {"calls": calls(timings), "bytes": parts[1].bytes_read,
            "flops": {str(rows): part.flops for rows, part in parts.items()}}


def scoring(setting):
    """Seconds of a step with scores that drop nothing, and of one without scores, batch 32."""
    ours = {name: setting.decoding(name, 32, 880) for name in ("no scores", "0% dropped")}
    contenders = {name: decoding.steps(2) for name, decoding in ours.items()}
    return {"calls": calls(interleaved(contenders, 6 * setting.rounds, pause=0.01, title="scoring"))}


def cache_bytes(setting):
    """Bytes of the pages owned, batch 32, right after a prompt of 900 tokens."""
    ours = {name: setting.decoding(name, 32, 900) for name in ("no scores", "80% dropped")}
    return {"bytes": {name: decoding.cache_bytes for name, decoding in ours.items()},
            "share_dropped": ours["80% dropped"].share_dropped}


def rss(setting):
    """The largest memory of a process that loads the model and decodes one sequence after 64 tokens."""
    return {"rss": bench_parts.peak_rss(setting.model, 64, THREADS),
            "weight_bytes": sum(x.nbytes for x in setting.model.params.values())}


def lengths(setting):
    """What `dcp-ref bench` measures, with a batch of 32: for the plots."""
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
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)} (default: all)")
    parser.add_argument("--resume", action="store_true", help="go on with the newest results: only rows it lacks")
    parser.add_argument("--rounds", type=int, default=5, help="that count (default: 5)")
    parser.add_argument("--out", type=Path, help="the JSON file (default: benchmarks/results/DATE-decode.json)")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the benchmark; numbers mean nothing")
    args = parser.parse_args()
    if unknown := set(args.rows) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    return args


def main():
    """Each of several rows in a process of its own: what a rival leaves, threads or memory, is not to slow the next."""
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
        print("\n".join(report.lines(results, names[0])), flush=True)
    if len(names) != 1:
        report.write(read(path), path)
        report.plots(read(path), path)
        print(f"written to {path.with_suffix('.md')}")


def read(path):
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": {}}


if __name__ == "__main__":
    main()
