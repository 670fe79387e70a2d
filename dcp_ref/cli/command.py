"""The `dcp-ref` command: the list of its subcommands, and how a run ends."""

import argparse
import contextlib
import sys
import warnings
from collections.abc import Sequence
from typing import Any, TextIO, cast

from dcp_ref import __version__
from dcp_ref.cli import (
    bench,
    calibrate,
    conformance,
    download,
    evaluate,
    generate,
    info,
    options,
    score,
    streams,
    trace,
    train,
)
from dcp_ref.training.signals import Stopped

COMMANDS: dict[str, Any] = {  # modules: HELP is one line, `add_options` adds to a parser, `run` obeys: None is code 0
    "generate": generate,
    "train": train,
    "evaluate": evaluate,
    "score": score,
    "calibrate": calibrate,
    "trace": trace,
    "conformance": conformance,
    "download": download,
    "bench": bench,
    "info": info,
}
EXAMPLES = """examples:
  dcp-ref generate "The old man looked at the sea"
  dcp-ref generate --file chapter.txt --max-new-tokens 50 --temperature 0
  dcp-ref train --text book.txt --out dense
  dcp-ref train --text book.txt --out pruned --init dense --prune
  dcp-ref evaluate --text book.txt
  dcp-ref score --input corpus.jsonl --out scores
  dcp-ref trace "The old man looked at the sea"
  dcp-ref conformance mine:MyCache
  dcp-ref COMMAND --help

Results go to stdout, messages to stderr. The exit code is 0 for success, 1 for a failure during the work, 2 for bad
input, 3 for a job that is done and had bad rows, 130 after Ctrl-C.
"""
NEED_NO_STDOUT = ("train", "download")  # their results are files; their lines on stdout may get lost


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand. Returns the exit code:

        0     success
        1     a failure during the work, or of stdout
        2     bad input
        3     a job that is done, and had bad rows
        130   Ctrl-C
        128 + n   signal n ended a training run

    Raises SystemExit as argparse does, after --help or for a mistyped option.
    """
    stdout_was_closed = streams.fill()
    with contextlib.redirect_stderr(cast(TextIO, streams.Heedless(sys.stderr))):
        arguments = sys.argv[1:] if arguments is None else list(arguments)
        name, top = "dcp-ref", parser(arguments)
        try:
            args = top.parse_args(arguments)
            if args.command is None:
                top.print_help()
                return _flushed(name, 0)
        except SystemExit as end:
            raise SystemExit(_flushed(name, end.code)) from None
        except OSError as error:  # the help could not be written
            return _flushed(name, _report(name, error))
        name = f"dcp-ref {args.command}"
        return _flushed(name, _run(name, args, stdout_was_closed))


def parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of these arguments, with the options of the subcommands that they name alone.

    `args.command` is None when no subcommand is given.
    """
    top = options.Parser(prog="dcp-ref", epilog=EXAMPLES,
                         description="Dynamic Context Pruning: GPT-2 that drops the context it does not need.")
    top.add_argument("--version", action="version", version=f"dcp-ref {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, module in COMMANDS.items():
        described = getattr(module, "DESCRIPTION", f"{module.HELP[0].upper()}{module.HELP[1:]}.")
        one = commands.add_parser(name, help=module.HELP, description=described, epilog=getattr(module, "EPILOG", None))
        if name in arguments:
            module.add_options(one)
    return top


def _run(name: str, args: argparse.Namespace, stdout_was_closed: bool) -> int:
    """Run the subcommand, with warnings and errors as lines on stderr. Returns the exit code."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: streams.say(name, message)
        try:
            _prepare_stdout(args, stdout_was_closed)
            return COMMANDS[args.command].run(args) or 0
        except Stopped as stop:
            streams.say(name, "stopped by a signal; give the same command to resume")
            return stop.code
        except (KeyboardInterrupt, ValueError, MemoryError, OSError, RuntimeError) as error:
            return _report(name, error)


def _report(name: str, error: BaseException) -> int:
    """Write the error on stderr. Returns the exit code that belongs to it."""
    if isinstance(error, BrokenPipeError):  # whoever read stdout has gone: nothing to say
        return 1
    interrupted = isinstance(error, KeyboardInterrupt)
    streams.say(name, str(error) or ("interrupted" if interrupted else type(error).__name__))
    return 130 if interrupted else 2 if isinstance(error, ValueError) else 1  # ValueError: bad input


def _prepare_stdout(args: argparse.Namespace, stdout_was_closed: bool) -> None:
    """Raises OSError where stdout is closed and the subcommand needs it."""
    if stdout_was_closed and args.command not in NEED_NO_STDOUT:
        raise OSError("standard output is closed, so there is nowhere to write to")
    if stdout_was_closed:
        streams.silence(sys.stdout)
    streams.as_utf8(sys.stdout)


def _flushed(name: str, code: Any) -> Any:
    """The exit code after flushing stdout: where that fails, an earlier failure's code, or else this one's."""
    try:
        sys.stdout.flush()
    except OSError as error:
        streams.silence(sys.stdout)
        return code or _report(name, error)
    return code


if __name__ == "__main__":
    sys.exit(main())
