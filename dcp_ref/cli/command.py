"""The `dcp-ref` command: generate | train | evaluate | download | bench | info."""

import argparse
import contextlib
import dataclasses
import json
import platform
import shlex
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, TextIO, cast

from dcp_ref import __version__, native
from dcp_ref.checkpoints import files, tokenizer_files, weights
from dcp_ref.cli import bench as cli_bench
from dcp_ref.cli import evaluate as cli_evaluate
from dcp_ref.cli import generate as cli_generate
from dcp_ref.cli import options, streams
from dcp_ref.training import TrainSettings, keep_memory, train
from dcp_ref.training.parallel import processors
from dcp_ref.training.stopping import Stopped

DOWNLOADED = ["config.json", weights.GENERATION, "model.safetensors", "model.safetensors.index.json",
              "model-*.safetensors", *tokenizer_files.ALL]
NEWS = ("train", "download")  # commands that put their results on the disk, and only news of them on stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, 1 for a failure under way, 2 for bad input, 130 after Ctrl-C, 143 and
    the like when another signal ends a training run.

    A failure under way is one of stdout too. Raises SystemExit as argparse does, after --help or for a mistyped option.
    """
    closed = streams.fill()
    with contextlib.redirect_stderr(cast(TextIO, streams.Heedless(sys.stderr))):
        name, parser = "dcp-ref", options.parser()
        try:
            args = parser.parse_args(arguments)
            if args.command is None:
                parser.print_help()
                return _ended(name, 0)
        except SystemExit as end:
            raise SystemExit(_ended(name, end.code)) from None
        except OSError as error:  # of the help that was asked for
            return _ended(name, _told(name, error))
        name = f"dcp-ref {args.command}"
        return _ended(name, _run(name, args, closed))


def _run(name: str, args: argparse.Namespace, closed: bool) -> int:
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: streams.say(name, message)
        try:
            _prepare_stdout(args, closed)
            COMMANDS[args.command](args)
            return 0
        except Stopped as stop:
            streams.say(name, "stopped by a signal; the same command goes on from here")
            return stop.code
        except (KeyboardInterrupt, ValueError, MemoryError, OSError, RuntimeError) as error:
            return _told(name, error)


def _told(name: str, error: BaseException) -> int:
    """The exit code that goes with an error, which has been told then."""
    if isinstance(error, BrokenPipeError):  # the reader of our output went away
        return 1
    interrupted = isinstance(error, KeyboardInterrupt)
    streams.say(name, str(error) or ("interrupted" if interrupted else type(error).__name__))
    return 130 if interrupted else 2 if isinstance(error, ValueError) else 1  # 2: what the user can put right


def _prepare_stdout(args: argparse.Namespace, closed: bool) -> None:
    """Raises OSError when it is closed and the command's result would go there; the lines of NEWS are not missed."""
    if closed and args.command not in NEWS:
        raise OSError("standard output is closed, so there is nowhere to write to")
    if closed:
        streams.silence(sys.stdout)
    streams.as_utf8(sys.stdout)


def _ended(name: str, code: Any) -> Any:
    """The exit code, once stdout has written all; another where it cannot, and nothing failed before."""
    try:
        sys.stdout.flush()
    except OSError as error:
        streams.silence(sys.stdout)
        return code or _told(name, error)
    return code


def _train(args: argparse.Namespace) -> None:
    """Train a model, or go on with a run that was stopped."""
    settings = TrainSettings(**{f.name: getattr(args, f.name) for f in dataclasses.fields(TrainSettings)})
    keep_memory()  # the process is ours, and ends with the run
    try:
        train(settings)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted; the same command goes on from here") from None
    _ready(settings.out)


def _download(args: argparse.Namespace) -> None:
    """Fetch a model directory from the Hugging Face hub."""
    try:
        from huggingface_hub import snapshot_download  # an optional dependency
    except ImportError:
        raise ValueError("the package huggingface_hub is missing: pip install huggingface_hub") from None
    out = args.out or args.name.rsplit("/", 1)[-1]
    try:
        snapshot_download(args.name, local_dir=out, allow_patterns=DOWNLOADED)
    except Exception as error:  # the hub's errors and its HTTP library's: too many to name
        raise RuntimeError(f"{args.name}: {' '.join(str(error).split())}") from error  # they come in many lines
    weights.load(out)
    _ready(out)


def _ready(directory: str) -> None:
    print(f'ready: dcp-ref generate "The old man looked at the sea" --model {shlex.quote(directory)}')


def _info(args: argparse.Namespace) -> None:
    """Print what runs here."""
    facts = {
        "dcp-ref": __version__,
        "backend": "native" if native.available() else "numpy",
        "simd": native.simd_level() or f"none: {native.missing()}",
        "threads": f"{native.threads()} in the kernels, on {processors()} processors",
        "python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "cffi", "safetensors", "tokenizers", "tqdm")},
        "platform": platform.platform(),
        "models": ", ".join(files.shipped_models()) or "none",
    }
    print(json.dumps(facts) if args.json else "\n".join(f"{name:12} {value}" for name, value in facts.items()))


COMMANDS = {"generate": cli_generate.run, "train": _train, "evaluate": cli_evaluate.run, "download": _download,
            "bench": cli_bench.run, "info": _info}


if __name__ == "__main__":
    sys.exit(main())
