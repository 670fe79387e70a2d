"""`dcp-ref calibrate`: measure which threshold keeps which share of the context, and put it into the model's config."""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from dcp_ref.analysis import calibration, texts
from dcp_ref.analysis.calibration import Measured
from dcp_ref.analysis.table import markdown, percent
from dcp_ref.checkpoints import files
from dcp_ref.cli import options, streams
from dcp_ref.config import Config

HELP = "measure which threshold keeps which share of the context, for --kept"
DESCRIPTION = """Measure which threshold of a model's learned rule keeps which share of the context.

The thresholds go into kept_thresholds of the model's config.json, which `--kept SHARE` of other commands reads; nothing
else is changed. They hold for texts like this one, of n_positions tokens: of a shorter text a larger share is kept.
"""
EPILOG = """examples:
  dcp-ref calibrate --model pruned --text valid.txt.xz
  dcp-ref calibrate --model pruned --text valid.txt.xz --shares 0.3 0.1 0.03 --windows 8
  dcp-ref generate "The sea" --model pruned --kept 0.1
"""


def add_options(p: argparse.ArgumentParser) -> None:
    add = p.add_argument
    add("--model", required=True, metavar="DIR", help="the model's directory, which is written into; or its name")
    add("--text", nargs="+", action="extend", required=True, metavar="FILE",
        help="UTF-8 text, as it is or as .xz; - is standard input; lines <|endoftext|> separate documents")
    add("--shares", nargs="+", action="extend", type=float, default=[], metavar="SHARE",
        help=f"the shares of the context (default: {' '.join(map(str, calibration.CARD_SHARES))})")
    add("--windows", type=int, default=32, metavar="N",
        help="measure N windows of n_positions tokens, evenly spread over the text (default: 32)")
    options.add_json(p)


def run(args: argparse.Namespace) -> None:
    """Measure, print the table or one JSON object, then write config.json, whole or not at all."""
    directory = files.find_model(args.model)
    model = texts.load(args.model)
    _check_writable(directory)
    tokens = texts.read_tokens(model, args.text)
    found = calibration.card(model, tokens, args.shares or calibration.CARD_SHARES, args.windows, progress=True)
    facts = {"model": args.model, "windows": args.windows, "measured": [one._asdict() for one in found]}
    print(json.dumps(facts) if args.json else _table(found))
    missed = [f"{one.share:g}" for one in found if not one.reached]
    if len(missed) == len(found):
        raise ValueError(f"{args.model} keeps none of these shares at any threshold: nothing is written; "
                         "train it with dcp-ref train --threshold-range, or give other --shares")
    if missed:
        streams.say("dcp-ref calibrate", f"no threshold keeps {', '.join(missed)}: left out of config.json")
    _write(directory, [(one.share, one.threshold) for one in found if one.reached])
    streams.say("dcp-ref calibrate", f"written: {directory / 'config.json'}")


def _table(found: list[Measured]) -> str:
    rows = [(percent(one.share), f"{one.threshold:.5g}", percent(one.kept), f"{one.perplexity:.2f}") for one in found]
    return markdown(["share wanted", "threshold", "through the cache", "perplexity"], rows)


def _check_writable(directory: Path) -> None:
    """Raises ValueError, before the work, where config.json could not be replaced."""
    try:
        with tempfile.TemporaryDirectory(dir=directory, prefix=".saving-"):
            pass
    except OSError as error:
        raise ValueError(f"{directory} cannot be written into ({error.strerror}): copy it, and calibrate the copy"
                         ) from None


def _write(directory: Path, pairs: list[tuple[float, float]]) -> None:
    """Replace kept_thresholds in config.json. Raises OSError, and ValueError for pairs that are no kept_thresholds."""
    fields: dict[str, Any] = files.read_json(directory / "config.json")
    fields["kept_thresholds"] = Config(kept_thresholds=tuple(pairs)).kept_thresholds  # by ascending share
    with files.replacing(directory) as temporary:
        (temporary / "config.json").write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
