"""`dcp-ref bench`: what pruning is worth on this machine, for a random GPT-2 small: a table, JSON and a plot."""

import argparse
import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dcp_ref import __version__, native
from dcp_ref.analysis.table import markdown
from dcp_ref.bench.decoding import Point, random_model, sweep
from dcp_ref.bench.parts import Attention, Linears, packed
from dcp_ref.bench.sweep_summary import break_even, columns, pays_from, plot, point_at, scoring_share
from dcp_ref.bench.timing import interleaved
from dcp_ref.checkpoints import pictures
from dcp_ref.checkpoints.weights import Model
from dcp_ref.cli import options, streams

HELP = "measure how much faster pruning makes decoding on this machine"
DESCRIPTION = "Measure how much faster pruning makes decoding on this machine, with a random GPT-2 small."
CONTEXTS, SHARES, ROUNDS = (64, 256, 512, 900), (0.0, 0.5, 0.8, 0.9), 5
QUICK_CONTEXTS, QUICK_SHARES, QUICK_ROUNDS = (64, 256), (0.0, 0.8), 3
ROWS = (1, 32, 64)  # of the matrix products alone


def add_options(p: argparse.ArgumentParser) -> None:
    add = p.add_argument
    add("--quick", action="store_true", help="fewer lengths, shares and rounds: half a minute instead of two")
    add("--batch", type=int, default=8, metavar="N", help="decode N sequences at once (default: 8)")
    options.add_storage(p)
    add("--out", metavar="DIR", help="also write bench.md, bench.json and bench.png (needs matplotlib) there")
    options.add_json(p)


def run(args: argparse.Namespace) -> None:
    """Measure, then print the table or the JSON; write both into a directory too, with the plot."""
    if args.batch < 1:
        raise ValueError(f"--batch must be 1 or more, not {args.batch}")
    if args.out:
        Path(args.out).mkdir(parents=True, exist_ok=True)  # first: a bad name is refused before the work
    contexts, shares = (QUICK_CONTEXTS, QUICK_SHARES) if args.quick else (CONTEXTS, SHARES)
    rounds = QUICK_ROUNDS if args.quick else ROUNDS
    result = measure(random_model(), contexts, shares, rounds, args.batch,
                     threads=args.threads, weights=args.weights, kv=args.kv)
    text, as_json = report(result), json.dumps(result, indent=2)
    print(as_json if args.json else text)
    if args.out:
        _write(Path(args.out), text, as_json, points_of(result))


def _write(directory: Path, text: str, as_json: str, points: list[Point]) -> None:
    (directory / "bench.json").write_text(as_json + "\n", encoding="utf-8")
    (directory / "bench.md").write_text(text + "\n", encoding="utf-8")
    problem = pictures.unavailable()
    if problem:
        streams.say("dcp-ref bench", f"no plot: {problem}")
    else:
        plot(points, directory / "bench.png")


def measure(model: Model, contexts: Sequence[int], shares: Sequence[float], rounds: int, batch: int,
            **options: Any) -> dict[str, Any]:
    """Everything that `report` shows, in types that JSON can hold."""
    points: list[Point] = []
    for context in contexts:
        points += sweep(model, context, tuple(shares), batch, rounds, **options)
    facts = {"dcp-ref": __version__, "batch": batch, "rounds": rounds, "simd": native.simd_level(),
             "threads": native.threads(options.get("threads") or 0), "platform": platform.platform(),
             "weights": options.get("weights", "float32"), "kv": options.get("kv", "float32")}
    parts = measure_parts(model, rounds, **options) if native.available() else {}
    return {"facts": facts, "points": [point._asdict() for point in points], "parts": parts,
            "scoring_share": {str(context): scoring_share(points, context) for context in contexts},
            "pays_from": pays_from(points)}


def measure_parts(model: Model, rounds: int, threads: int | None = None, weights: str = "float32",
                  kv: str = "float32") -> dict[str, float]:
    """Bytes or floating-point operations a second of the two large parts of a step, each alone."""
    matrices = packed(model, weights)
    products = {rows: Linears(matrices, rows, threads or 0) for rows in ROWS}
    live = min(256, model.config.n_positions // 2)
    attention = Attention(model.config, 8, live, rounds + 1, kv, threads or 0)
    contenders = {f"{rows} rows": linears.step for rows, linears in products.items()} | {"attention": attention.step}
    timings = interleaved(contenders, rounds, pause=0.01, title="parts")
    rates = {f"linear, {rows} row{'s' * (rows > 1)}, GFLOP/s": linears.flops / timings[f"{rows} rows"].median / 1e9
             for rows, linears in products.items()}
    return {"attention, 8 sequences, GB/s": attention.bytes_read / timings["attention"].median / 1e9,
            "linear, 1 row, GB/s": products[1].bytes_read / timings["1 rows"].median / 1e9, **rates}


def points_of(result: dict[str, Any]) -> list[Point]:
    return [Point(**fields) for fields in result["points"]]


def report(result: dict[str, Any]) -> str:
    """Tables in Markdown, then a sentence for each conclusion."""
    points = points_of(result)
    heading = ("GPT-2 small, random weights, {weights}; keys and values {kv}; batch {batch}, {threads} threads, "
               "{simd}; medians of {rounds}").format(**result["facts"])
    tables = [_table("tokens/s at", points, lambda p: f"{p.tokens_per_second:.1f}"),
              _table("cache, MB, at", points, lambda p: f"{p.cache_bytes / 1e6:.1f}"),
              _table("really dropped at", points, lambda p: f"{p.share_dropped:.1%}")]
    lines = []
    for context, share in result["scoring_share"].items():
        lines.append(f"Scoring, while nothing is dropped, takes {share:.1%} of a step at {context} tokens.")
    for share, first in result["pays_from"].items():
        than = {"learned": "with nothing dropped", "dense": "without scores"}
        found = [f"from {n} tokens on than {than[base]}" if n else f"at no length here than {than[base]}"
                 for base, n in first.items()]
        lines.append(f"A step with {share} dropped is faster {', '.join(found)}.")
    lines += [f"{name}: {rate:.1f}" for name, rate in result["parts"].items()]
    lines.append(break_even(result["pays_from"]))
    return "\n\n".join([heading, *tables, "\n".join(lines)])


def _table(title: str, points: list[Point], cell: Callable[[Point], str]) -> str:
    titles = columns(points)
    rows = [[context, *(cell(point_at(points, context, *column)) for column in titles)]
            for context in dict.fromkeys(p.context for p in points)]
    return markdown([title, *titles.values()], rows)
