"""`dcp-ref conformance`: whether a pruned cache of your own does what the paper says."""

import argparse
import importlib
import json
import sys
from typing import Any

from dcp_ref.cli import options, streams

HELP = "check a pruned cache of your own"
DESCRIPTION = """Check a pruned cache of your own against the definition: docs/testing.md says how.

TARGET is a class, package.module:Class; modules are found in this directory too. A cache in another language gets
cases as files, and its answers are judged. The exit code is 0 for a cache that conforms, 1 for one that does not.
"""
EPILOG = """examples:
  dcp-ref conformance --skeleton numpy > mine.py
  dcp-ref conformance mine:MyCache
  dcp-ref conformance --export cases   # then write answers there
  dcp-ref conformance --import cases --json
"""
SKELETONS = ("numpy", "torch", "ctypes")  # dcp_ref.testing's, which needs an extra: so it is imported when it is used


def add_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("target", nargs="?", metavar="TARGET", help="a class to check: package.module:Class")
    ways = p.add_mutually_exclusive_group().add_argument
    ways("--skeleton", choices=SKELETONS, help="print a class to begin with, which conforms")
    ways("--export", metavar="DIR", help="write cases into a new directory, for a cache in another language")
    ways("--import", metavar="DIR", dest="answers", help="judge the answers in a directory of --export")
    p.add_argument("--examples", type=int, metavar="N", help="histories of the largest check (default: 200), or cases "
                                                             "of each check that are exported (default: 20)")
    p.add_argument("--seed", type=int, default=0, metavar="S", help="what the histories are drawn from (default: 0)")
    p.add_argument("--level", type=int, default=4, choices=range(5), help="the last level: 0 the gate, 1 masks, 2 one "
                   "sequence token by token, 3 histories, 4 the shipped model (default: 4)")
    p.add_argument("--first", action="store_true", help="end with the first check that fails, which names the fault")
    p.add_argument("--failures", default="conformance-failures", metavar="DIR",
                   help="where the arrays and a script of each failure go (default: conformance-failures)")
    options.add_json(p)


def run(args: argparse.Namespace) -> None:
    """Check, print the report, and raise RuntimeError for a cache that does not conform."""
    other = args.skeleton or args.export or args.answers
    if (args.target is None) == (other is None):
        raise ValueError("give a class, package.module:Class, or one of --skeleton, --export and --import")
    if args.examples is not None and args.examples < 1:
        raise ValueError(f"--examples must be 1 or more, not {args.examples}")
    try:
        testing = importlib.import_module("dcp_ref.testing")
    except ImportError as error:
        raise RuntimeError(str(error)) from None
    if args.skeleton:
        sys.stdout.write(testing.skeleton(args.skeleton))
    elif args.export:
        n = testing.export_cases(args.export, args.examples or 20, args.seed)
        streams.say("dcp-ref", f"written: {n} cases in {args.export}")
    else:
        _finish(args, testing.import_answers(args.answers) if args.answers else testing.check_cache(
            _target(args.target), args.examples or 200, args.seed, args.level, args.failures, first=args.first))


def _finish(args: argparse.Namespace, report: Any) -> None:
    print(json.dumps(report.to_dict()) if args.json else report)
    if not report.ok:
        raise RuntimeError(f"{report.name} does not conform: {', '.join(report.failed) or 'no check passed'}")


def _target(text: str) -> Any:
    """The class that package.module:Class names. Raises ValueError when there is none."""
    module, _, name = text.partition(":")
    if not module or not name:
        raise ValueError(f"{text}: a class is named as package.module:Class")
    sys.path.insert(0, "")  # as `python -m` does
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever a module's own code may raise
        raise ValueError(f"{text} cannot be imported: {type(error).__name__}: {error}") from None
    finally:
        sys.path.remove("")
