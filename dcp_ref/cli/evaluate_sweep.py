"""`dcp-ref evaluate --sweep`: perplexity against context kept for many rules, as a table, JSON and a plot."""

import argparse
import json
from pathlib import Path

import numpy as np

from dcp_ref.analysis import perplexity, sweep, sweep_plot, texts
from dcp_ref.checkpoints import pictures
from dcp_ref.cli import options
from dcp_ref.training.data import read_documents


def add_options(p: argparse.ArgumentParser) -> None:
    add = p.add_argument_group("sweep over rules").add_argument
    add("--sweep", action="store_true", help="measure --text with the learned rule and with untrained rules")
    add("--models", nargs="+", action="extend", default=[], metavar="DIR",
        help="other pruned models, one point each at threshold 0; if --model is not given, there is no curve")
    add("--dense", metavar="DIR", help="the model for the dense line and the fixed rules (default: the same model, its "
                                       "learned rule off)")
    add("--thresholds", nargs="+", type=float, action="extend", default=[], metavar="T",
        help="thresholds of the curve, besides 0 (default: those that keep about 100, 50, 20, 10, 5, 2 and 1%%)")
    add("--out", metavar="PREFIX", help="also write PREFIX.json, PREFIX.md and PREFIX.png (needs matplotlib)")


def run(args: argparse.Namespace) -> None:
    """Measure every point, then print the table or one JSON object; with --out, write both and the plot."""
    if args.out:
        _prepare(args.out)
    plan = _plan(args)
    tokens = _common_tokens(plan, args)
    n_bytes = texts.count_bytes(plan.base[1], tokens)
    context, stride = perplexity.check_windows(plan.base[1].config, tokens, args.context, args.stride)
    points = sweep.measure(plan, tokens, n_bytes, context, stride, progress=True, backend=args.backend,
                           weights=args.weights, kv=args.kv, threads=args.threads,
                           max_cache_bytes=args.max_cache_bytes)
    note = _note(plan)
    result = {"tokens": len(tokens) - 1, "bytes": n_bytes, "context": context, "stride": stride, "note": note,
              "weights": args.weights, "kv": args.kv, "points": [point._asdict() for point in points]}
    title = f"{len(tokens) - 1} tokens, windows of {context}, stride {stride}" + (f"\n{note}" if note else "")
    text = f"{title}\n\n{sweep.report(points)}"
    print(json.dumps(result) if args.json else text)
    if args.out:
        Path(f"{args.out}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        # surrogateescape: a file name that is no UTF-8 stays as it is on the disk
        Path(f"{args.out}.md").write_text(text + "\n", encoding="utf-8", errors="surrogateescape")
        sweep_plot.plot(points, Path(f"{args.out}.png"), title)


def _note(plan: sweep.Sweep) -> str:
    """A warning where the dense line and the fixed rules come from a model that was trained to drop."""
    name, model = plan.base
    if model.config.int_n_embd is None:
        return ""
    return f"dense and fixed rules: {name} with its learned rule off, not a model trained dense (--dense)"


def _prepare(out: str) -> None:
    """Raises ValueError, before the work, where the files could not be written."""
    problem = pictures.unavailable()
    if problem:
        raise ValueError(f"--out draws a plot, but {problem}")
    if out.endswith("/") or Path(out).is_dir():
        raise ValueError(f"--out {out} is a directory: give the beginning of file names in it, as {Path(out, 'curve')}")
    try:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out: cannot make {Path(out).parent} ({error.strerror}): give another place") from None


def _plan(args: argparse.Namespace) -> sweep.Sweep:
    name = args.model or (None if args.models else options.DEFAULT_MODEL)
    learned = (name, texts.load(name)) if name else None
    others = [(other, texts.load(other)) for other in args.models]
    base = (args.dense, texts.load(args.dense)) if args.dense else learned or others[0]
    return sweep.Sweep(learned, others, base, args.thresholds or None)


def _common_tokens(plan: sweep.Sweep, args: argparse.Namespace) -> np.ndarray:  # -> [N]
    """The tokens of the texts. Raises ValueError when the models' tokenizers find different ones."""
    documents = read_documents(args.text)  # once: standard input cannot be read again
    tokens = texts.tokens_of(plan.base[1], documents, args.max_tokens)
    for name, model in plan.pruned:
        if model is plan.base[1]:
            continue
        if not np.array_equal(texts.tokens_of(model, documents, args.max_tokens), tokens):
            raise ValueError(f"{name} and {plan.base[0]} have different tokenizers: their perplexities a token cannot "
                             "be compared; sweep each by itself")
    return tokens
