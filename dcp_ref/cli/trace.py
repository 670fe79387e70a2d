"""`dcp-ref trace`: who drops whom in a text, in which layer, when, and why."""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from dcp_ref import policies
from dcp_ref.analysis.texts import load, read_tokens, tokenizer_of
from dcp_ref.checkpoints.weights import Model
from dcp_ref.cli import options, streams
from dcp_ref.runtime.engine import Engine
from dcp_ref.runtime.row import Row
from dcp_ref.tracing import Trace, summary, trace_files, windows
from dcp_ref.tracing.recording import trace_of

HELP = "show which token dropped which, in which layer, and why"
DESCRIPTION = """Show which token dropped which, in which layer, when, and why.

Without options, a picture for the terminal: below each token, the position of the token that dropped it, layer by
layer. A long text is cut into windows of n_positions tokens; files that are written get numbers then.
"""
EPILOG = """examples:
  dcp-ref trace "The old man looked at the sea, and the sea looked back at him."
  dcp-ref trace "The old man looked at the sea" --scores --html sea.html
  dcp-ref trace "The old man looked at the sea" --why 2 3 1
  dcp-ref trace "The old man looked at the sea" --compare-threshold 1
  dcp-ref trace --file book.txt --summary --kind "speech=[\\"“”]"
"""


def add_options(p: argparse.ArgumentParser) -> None:
    add = p.add_argument
    add("text", nargs="?", metavar="TEXT", help="the text")
    add("--file", nargs="+", action="extend", default=[], metavar="F",
        help="files instead; .xz is unpacked, - is standard input")
    add("--max-tokens", type=int, metavar="N", help="read the first N tokens of the files only (default: all)")
    options.add_model(p)
    options.add_rule(p)
    options.add_pin(p)
    add("--html", metavar="OUT", help="write a page that shows all of it: one file, which fetches nothing")
    add("--save", metavar="FILE", help="write the trace for dcp_ref.tracing.load")
    add("--scores", action="store_true", help="put the scores of all pairs into what is written, too")
    add("--why", nargs=3, type=int, metavar=("LAYER", "I", "J"),
        help="take apart the score that token J got from token I; and if I dropped J, say what keeping it had changed")
    add("--summary", action="store_true", help="sum up lifetimes by layer and kind of token")
    add("--kind", action="append", default=[], metavar="NAME=REGEX",
        help="a kind of one's own for --summary: tokens in whose text the pattern is found; can be repeated")
    other = p.add_mutually_exclusive_group().add_argument
    other("--compare-threshold", type=float, metavar="T", help="what this threshold drops otherwise")
    other("--compare-policy", metavar="RULE", help="what this rule drops otherwise")
    options.add_json(p)


def run(args: argparse.Namespace) -> None:
    """Trace the text; then print, or write, what the options ask for."""
    own = _check(args)
    model = load(args.model)
    ids = tokenizer_of(model).encode(args.pin + args.text) if args.text is not None else _file(args, model)
    traces = _traces(args, model, ids, args.policy, args.threshold, args.kept)
    if args.summary:
        summed = summary(traces, own)
        print(json.dumps(summed.to_dict()) if args.json else summed)
        return
    others: list[Trace | None] = [None] * len(traces)
    if _compares(args):
        rule = args.policy if args.compare_policy is None else args.compare_policy
        others[:] = _traces(args, model, ids, rule, args.compare_threshold or 0.0)
    for n, (one, other) in enumerate(zip(traces, others, strict=True), 1):
        if args.scores:
            one.counterfactual()  # for the page
        if args.html:
            _write(args.html, n, len(traces), partial(_write_html, one, other=other))
        if args.save:
            _write(args.save, n, len(traces), one.save)
    if args.json:
        found = [one.to_dict() for pair in zip(traces, others, strict=True) for one in pair if one is not None]
        print(json.dumps(found[0] if len(found) == 1 else {"traces": found}))
    elif args.why or _compares(args) or not (args.html or args.save):
        print("\n\n".join(_text(args, one, other) for one, other in zip(traces, others, strict=True)))


def check_suffix(path: str) -> None:
    """Raises ValueError for a file that a trace cannot be written into."""
    if Path(path).suffix not in WRITERS:
        raise ValueError(f"{path}: the name of a trace must end in one of {', '.join(WRITERS)}")


def write_rows(model: Model, engine: Engine, rows: list[Row], name: str, path: str) -> None:
    """Write the trace of each row; where there are several, into numbered files. Raises OSError."""
    for n, row in enumerate(rows, 1):
        if found := trace_of(model, engine, row):
            found = replace(found, name=Path(name).name, scores=engine.policy.learned)
            _write(path, n, len(rows), partial(WRITERS[Path(path).suffix], found))


def _write(path: str, n: int, of: int, writer: Callable[[Path], None]) -> None:
    numbered = Path(path) if of == 1 else Path(path).with_stem(f"{Path(path).stem}-{n}")
    writer(numbered)
    streams.say("dcp-ref", f"written: {numbered}")


def _write_html(trace: Trace, path: Path, other: Trace | None = None) -> None:
    trace_files.write(path, trace.to_html(other).encode())


def _write_json(trace: Trace, path: Path) -> None:
    trace_files.write(path, trace.to_json().encode())


WRITERS: dict[str, Callable[[Trace, Path], None]] = {".html": _write_html, ".json": _write_json,
                                                     ".safetensors": Trace.save}


def _check(args: argparse.Namespace) -> dict[str, str]:
    """The kinds of one's own. Raises ValueError for options that do not go together."""
    if (args.text is None) == (not args.file):
        raise ValueError("give a text, or --file FILE, and not both")
    if args.max_tokens is not None and not args.file:
        raise ValueError("--max-tokens goes with --file: add it, or leave this out")
    if args.pin and args.text is None:
        raise ValueError("--pin goes with a text, not with --file: begin the file with it, or leave this out")
    if args.kind and not args.summary:
        raise ValueError("--kind goes with --summary: add it, or leave this out")
    if args.summary and (args.html or args.save or args.scores or args.why or _compares(args)):
        raise ValueError("--summary prints one summary: leave out --html, --save, --scores, --why and --compare-...")
    if args.why and args.json:
        raise ValueError("--why prints a text: leave out --json")
    for kind in args.kind:
        if not all(kind.partition("=")[::2]):
            raise ValueError(f"--kind {kind}: give NAME=REGEX, as in speech=[“”]")
    return dict(kind.split("=", 1) for kind in args.kind)


def _compares(args: argparse.Namespace) -> bool:
    return args.compare_threshold is not None or args.compare_policy is not None


def _file(args: argparse.Namespace, model: Model) -> list[int]:
    tokens = read_tokens(model, args.file, args.max_tokens).tolist()
    return tokens if args.max_tokens is None else tokens[: args.max_tokens]


def _traces(args: argparse.Namespace, model: Model, ids: list[int], rule: str | None, threshold: float,
            kept: float | None = None) -> list[Trace]:
    policy = None if rule is None else policies.parse(rule)
    found = windows(model, ids, policy, threshold, args.backend, args.scores, args.pin or None, kept)
    return [replace(one, name=Path(args.model).name) for one in found]


def _text(args: argparse.Namespace, one: Trace, other: Trace | None) -> str:
    if other is not None:
        return str(one.compare(other))
    if not args.why:
        return str(one)
    layer, i, j = args.why
    found = one.why(layer, i, j)
    return str(found) if found.dropped_by != i else f"{found}\n\n{one.counterfactual(layer, i, j)}"
