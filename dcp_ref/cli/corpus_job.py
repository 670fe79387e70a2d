"""What `dcp-ref score` and `dcp-ref generate --input` share: from options to a job, and what a run of it says."""

import argparse
from pathlib import Path
from typing import Any

from dcp_ref import __version__
from dcp_ref.checkpoints import inputs
from dcp_ref.cli import options, streams
from dcp_ref.corpus import job
from dcp_ref.corpus.mapper import Mapper

BAD_ROWS = 3  # the exit code of a job that is done, and had rows with an error


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """What a Mapper takes, of the options that commands share."""
    return {"model": args.model, "id": args.id or "id", "text": args.text or "text", "batch": args.batch,
            **options.engine_arguments(args)}


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
    print(f"{totals.rows} rows, {totals.errors} with an error; parts: {totals.made} made, {totals.kept} there")
    if totals.errors:
        streams.say(f"dcp-ref {args.command}", "some rows have an error: their column error says which one")
    return BAD_ROWS if totals.errors else 0
