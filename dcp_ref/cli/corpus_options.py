"""What `dcp-ref score` and `dcp-ref generate --input` share: the options of a job, and what a run of it says."""

import argparse
import re
from pathlib import Path
from typing import Any

from dcp_ref import __version__
from dcp_ref.checkpoints import inputs
from dcp_ref.cli import streams
from dcp_ref.corpus import job
from dcp_ref.corpus.mapper import Mapper
from dcp_ref.corpus.part_files import FORMATS

BAD_ROWS = 3  # the exit code of a job that is done, and had rows with an error
OPTIONS = ("id", "text", "out", "shard", "format", "limit", "part_rows", "batch", "workers", "ray")


def add_options(p: argparse.ArgumentParser, required: bool) -> None:
    add = p.add_argument_group("many documents").add_argument
    add("--input", nargs="+", action="extend", default=[], metavar="FILE", required=required,
        help="rows: JSONL, as it is or as .gz, .xz or .zst, or .parquet; - is standard input")
    add("--id", metavar="NAME", help="the column of ids, which are strings or integers (default: id)")
    add("--text", metavar="NAME", help="the column of texts (default: text)")
    add("--out", metavar="DIR", required=required,
        help="the directory for the parts of the result; the same command again makes those that are missing")
    add("--shard", metavar="I/N", type=_shard, help="do the I-th of N equal shares of the parts, 1/N to N/N")
    add("--format", choices=FORMATS, help="what parts are written as (default: jsonl)")
    add("--limit", type=int, metavar="N", help="read the first N rows only (default: all)")
    add("--part-rows", type=int, metavar="N", help="rows of a part (default: 1000, or fewer that hold 4 MiB)")
    add("--batch", type=int, metavar="N", help="texts decoded at once (default: as many as 1 GB holds, at most 64)")
    add("--workers", type=int, metavar="N",
        help="processes, each with an engine on one thread or --threads (default: this process; all of a cluster)")
    add("--ray", nargs="?", const="local", metavar="ADDRESS",
        help="work on a Ray cluster, or on a local one without an address; needs the extra ray")


def check_alone(args: argparse.Namespace) -> None:
    """Raises ValueError for options of a job without its input."""
    for name in OPTIONS:
        if getattr(args, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} goes with --input: add it, or leave this out")


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """What a Mapper takes, of the options that commands share."""
    return {"model": args.model, "id": args.id or "id", "text": args.text or "text", "batch": args.batch,
            **{name: getattr(args, name) for name in ("policy", "threshold", "backend", "weights", "kv", "threads",
                                                      "max_cache_bytes")}}


def described(args: argparse.Namespace) -> job.Job:
    """The job that the options describe. Raises ValueError."""
    inputs.check(args.input)
    if not args.out:
        raise ValueError("--input needs --out DIR, for the parts of the result")
    return job.Job(tuple(args.input), Path(args.out), __version__, args.format or "jsonl", args.shard or (1, 1),
                   args.limit, 1000 if args.part_rows is None else args.part_rows, args.workers, args.ray)


def run(args: argparse.Namespace, mapper: Mapper, described: job.Job) -> int:
    """Do the job, and print what it did. Returns the exit code."""
    totals = job.run(described, mapper, progress=args.command)
    print(f"{totals.rows} rows, {totals.errors} with an error; {totals.made} parts made, {totals.kept} were there")
    if totals.errors:
        streams.say(f"dcp-ref {args.command}", "some rows have an error: their column error says which one")
    return BAD_ROWS if totals.errors else 0


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"give I/N, as in 1/3, not {text!r}")
    return int(found[1]), int(found[2])
