"""`dcp-ref score`: how likely each of many documents is, in parts that a killed run resumes."""

import argparse

from dcp_ref.cli import corpus_job, options
from dcp_ref.corpus import Scorer

HELP = "score many documents: log-probability, bits a byte, live tokens"
DESCRIPTION = """Score each document of a corpus as `dcp-ref evaluate` measures one text.

The result's rows have an id, log_probability (nats), tokens, bytes, bits_per_byte, live_tokens (for each layer, a mean
over the scored tokens), share_kept, and error. They are in parts, files that are written whole. A run that was ended
goes on with the parts that are missing; the bytes do not depend on that, nor on shards, workers or batches.
The exit code is 3 when all is done and some rows have an error.
"""
EPILOG = """examples:
  dcp-ref score --input corpus.jsonl --out scores
  dcp-ref score --input corpus.jsonl.zst --out scores --shard 1/3
  dcp-ref score --input corpus.parquet --out scores --format parquet --ray
"""


def add_options(p: argparse.ArgumentParser) -> None:
    options.add_model(p)
    options.add_job(p, required=True)
    p.add_argument("--context", type=int, metavar="T", help="tokens of a window (default: n_positions)")
    p.add_argument("--stride", type=int, metavar="S",
                   help="tokens from one window's start to the next's (default: the context)")
    options.add_engine(p)


def run(args: argparse.Namespace) -> int:
    """Do the job. Returns the exit code."""
    described = corpus_job.described(args)
    mapper = Scorer(**corpus_job.engine_options(args), context=args.context, stride=args.stride)
    return corpus_job.run(args, mapper, described)
