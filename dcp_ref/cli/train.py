"""`dcp-ref train`: train a model, or resume a run that was stopped."""

import argparse
import dataclasses
from typing import Any, get_args, get_origin

from dcp_ref.cli import streams
from dcp_ref.training import TrainSettings, keep_memory, train

HELP = "train a model on text files"
DESCRIPTION = """Train a GPT-2 on text files. With --prune it learns to drop context.

To resume a run that was stopped, give the same command again: it ends with the same bits as an unbroken run.
"""
EPILOG = """ways to learn what to drop; most of them can be combined:
  --prune                                        train the model and its rule together, from random weights
  --prune --init DENSE                           let a dense model learn what it can do without (as in the paper)
  --prune --init DENSE --only-interaction        train the rule alone; the paper found this not to be enough
  --prune --init DENSE --teacher DENSE           learn the dense model's next-token distribution too
  --prune --propagate-in-depth                   drop what an earlier layer has dropped
  --prune --int-n-embd 4                         make the rule cheaper; a width of 1 works too
  --prune --int-delay 16                         keep every token for at least 16 steps
  --prune --gamma 0.05                           set how much to drop by the weight of the sparsity loss
  --prune --target-kept 0.2                      or by the share to keep: gamma is then steered
  --prune --threshold-range -5 0.8               train one model for many shares; --threshold then chooses one
"""


def add_options(p: argparse.ArgumentParser) -> None:
    """An option for each field of TrainSettings."""
    for f in dataclasses.fields(TrainSettings):
        flag, text = "--" + f.name.replace("_", "-"), f.metadata["help"].replace("%", "%%")
        required = f.default is dataclasses.MISSING
        kind: Any = next((t for t in get_args(f.type) if t is not type(None)), f.type)
        if kind is bool:
            p.add_argument(flag, action="store_true", help=text)
        elif get_origin(kind) is tuple:
            p.add_argument(flag, nargs=2, type=float, metavar=("LOW", "HIGH"), help=text)
        elif get_origin(f.type) is tuple:
            p.add_argument(flag, nargs="+", action="extend", default=[], required=required, metavar="FILE", help=text)
        else:
            metavar = {int: "N", float: "X", str: "PATH"}[kind]
            text += f" (default: {f.default})" if kind is not str and f.default is not None else ""
            p.add_argument(flag, type=kind, default=f.default, required=required, metavar=metavar, help=text)


def run(args: argparse.Namespace) -> None:
    """Train, then say how to use the model."""
    settings = TrainSettings(**{f.name: getattr(args, f.name) for f in dataclasses.fields(TrainSettings)})
    keep_memory()  # this process does nothing else
    try:
        train(settings)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; give the same command to resume") from None
    streams.ready(settings.out)
