"""`dcp-ref bench`: what pruning is worth here, on a random GPT-2 small: a table, JSON, and plots."""

import argparse
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dcp_ref import __version__, native
from dcp_ref.analysis.sweep_plot import REMEDY, have_matplotlib
from dcp_ref.bench.decoding import Point, random_model, sweep
from dcp_ref.bench.parts import Attention, Linears
from dcp_ref.bench.timing import interleaved
from dcp_ref.checkpoints.weights import Model
from dcp_ref.cli import streams
from dcp_ref.runtime.engine import Engine

CONTEXTS, SHARES, ROUNDS = (64, 256, 512, 900), (0.0, 0.5, 0.8, 0.9), 5
QUICK_CONTEXTS, QUICK_SHARES, QUICK_ROUNDS = (64, 256), (0.0, 0.8), 3
ROWS = (1, 32, 64)  # of the matrix products alone
NO_PLOT = f"no plots without matplotlib: {REMEDY}"


def run(args: argparse.Namespace) -> None:
    """Measure, then print the table, or the JSON; into a directory too, with the plots."""
    if args.batch < 1:
        raise ValueError(f"--batch must be 1 or more, not {args.batch}")
    if args.out:
        Path(args.out).mkdir(parents=True, exist_ok=True)  # now: a bad name is refused before the work
    contexts, shares = (QUICK_CONTEXTS, QUICK_SHARES) if args.quick else (CONTEXTS, SHARES)
    rounds = QUICK_ROUNDS if args.quick else ROUNDS
    result = measure(random_model(), contexts, shares, rounds, args.batch,
                     threads=args.threads, weights=args.weights, kv=args.kv)
    text, as_json = report(result), json.dumps(result, indent=2)
    print(as_json if args.json else text)
    if args.out:
        (Path(args.out) / "bench.json").write_text(as_json + "\n", encoding="utf-8")
        (Path(args.out) / "bench.md").write_text(text + "\n", encoding="utf-8")
        if not plot(points_of(result), Path(args.out) / "bench.png"):
            streams.say("dcp-ref bench", NO_PLOT)


def measure(model: Model, contexts: Sequence[int], shares: Sequence[float], rounds: int, batch: int,
            **options: Any) -> dict[str, Any]:
    """Everything that `report` shows, as JSON can hold it."""
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
    """Bytes or floating-point operations a second of a step's two large parts, alone."""
    engine = Engine(model, "native", weights=weights, threads=threads)
    products = {rows: Linears(engine, rows) for rows in ROWS}
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


def _at(points: list[Point], context: int, rule: str, share: float = 0.0) -> Point:
    return next(p for p in points if (p.context, p.rule, p.share_wanted) == (context, rule, share))


def scoring_share(points: list[Point], context: int) -> float:
    """The share of a step that all pruning work costs while nothing is dropped."""
    return 1 - _at(points, context, "dense").step_seconds / _at(points, context, "learned").step_seconds


def pays_from(points: list[Point]) -> dict[str, dict[str, int | None]]:
    """For each share dropped, the shortest context from which on a step is faster than with nothing dropped, and than
    without scores; None where the longest is not."""
    result: dict[str, dict[str, int | None]] = {}
    contexts = sorted({p.context for p in points}, reverse=True)
    for share in sorted({p.share_wanted for p in points} - {0.0}):
        result[f"{share:.0%}"] = {}
        for base in ("learned", "dense"):
            first = None
            for context in contexts:
                if _at(points, context, "learned", share).step_seconds >= _at(points, context, base).step_seconds:
                    break
                first = context
            result[f"{share:.0%}"][base] = first
    return result


def report(result: dict[str, Any]) -> str:
    """Tables in Markdown."""
    points, facts = points_of(result), result["facts"]
    lines = ["GPT-2 small, random weights, {weights}; keys and values {kv}; batch {batch}, {threads} threads, {simd}; "
             "medians of {rounds}".format(**facts), ""]
    lines += _table("tokens/s at", points, lambda p: f"{p.tokens_per_second:.1f}")
    lines += _table("cache, MB, at", points, lambda p: f"{p.cache_bytes / 1e6:.1f}")
    lines += _table("really dropped at", points, lambda p: f"{p.share_dropped:.1%}")
    for context, share in result["scoring_share"].items():
        lines.append(f"Scoring, while nothing is dropped, takes {share:.1%} of a step at {context} tokens.")
    for share, first in result["pays_from"].items():
        than = {"learned": "with nothing dropped", "dense": "without scores"}
        found = [f"from {n} tokens on than {than[base]}" if n else f"at no length here than {than[base]}"
                 for base, n in first.items()]
        lines.append(f"A step with {share} dropped is faster {', '.join(found)}.")
    lines += [f"{name}: {rate:.1f}" for name, rate in result["parts"].items()]
    return "\n".join(lines)


def _table(title: str, points: list[Point], cell: Any) -> list[str]:
    columns = list(dict.fromkeys((p.rule, p.share_wanted) for p in points))
    names = ["no scores" if rule == "dense" else f"{share:.0%} dropped" for rule, share in columns]
    rows = [[str(context), *(cell(_at(points, context, *column)) for column in columns)]
            for context in dict.fromkeys(p.context for p in points)]
    return ["| " + " | ".join(row) + " |" for row in ([title, *names], ["---"] * (1 + len(names)), *rows)] + [""]


def plot(points: list[Point], path: Path) -> bool:
    """Tokens/s and cache bytes against the context's length; False, and nothing done, without matplotlib."""
    if not have_matplotlib():
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    speed, size = figure.subplots(1, 2)
    for rule, share in dict.fromkeys((p.rule, p.share_wanted) for p in points):
        line = [p for p in points if (p.rule, p.share_wanted) == (rule, share)]
        label, style = ("no scores", "--") if rule == "dense" else (f"{share:.0%} dropped", "-")
        for axes, values in ((speed, [p.tokens_per_second for p in line]), (size, [p.cache_bytes / 1e6 for p in line])):
            axes.plot([p.context for p in line], values, style, marker="o", label=label)
    for axes, name in ((speed, "tokens/s"), (size, "cache, MB")):
        axes.set(xlabel="context, tokens", ylabel=name, ylim=(0, None))
        axes.legend()
    figure.savefig(path, dpi=120)
    return True
