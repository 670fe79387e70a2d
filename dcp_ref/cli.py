"""The `dcp-ref` command: generate | train | evaluate | download | bench | info."""

import argparse
import dataclasses
import io
import json
import os
import platform
import shlex
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version

from dcp_ref import __version__, cli_bench, cli_evaluate, cli_generate, files, options, weights
from dcp_ref.runtime import native
from dcp_ref.training import TrainSettings, keep_memory, train
from dcp_ref.training.stopping import Stopped

DOWNLOADED = ["config.json", "model.safetensors", "model.safetensors.index.json", "model-*.safetensors",
              "tokenizer.json", "vocab.json", "merges.txt"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, 1 for a failure under way, 2 for bad input, 130 after Ctrl-C,
    143 and the like when another signal ends a training run."""
    parser = options.parser()
    args = parser.parse_args(arguments)
    if args.command is None:
        parser.print_help()
        return 0
    if isinstance(sys.stdout, io.TextIOWrapper):  # text is UTF-8, in and out, and is seen line by line in a pipe too
        sys.stdout.reconfigure(encoding="utf-8", line_buffering=True)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: _say(args, message)
        try:
            COMMANDS[args.command](args)
            return 0
        except KeyboardInterrupt as stop:
            return _failed(args, 130, str(stop) or "interrupted")
        except Stopped as stop:
            return _failed(args, stop.code, "stopped by a signal; the same command goes on from here")
        except BrokenPipeError:  # the reader of our output went away
            return _failed(args, 1, None)
        except ValueError as error:  # what the user can put right
            return _failed(args, 2, error)
        except (MemoryError, OSError, RuntimeError) as error:
            return _failed(args, 1, error)


def _say(args: argparse.Namespace, message: object) -> None:
    """One line on stderr."""
    print(f"dcp-ref {args.command}:", *str(message).split(), file=sys.stderr)


def _failed(args: argparse.Namespace, code: int, error: object) -> int:
    if error is not None:
        _say(args, str(error) or type(error).__name__)
    try:
        print(end="", flush=True)
    except OSError:  # what nobody can read is dropped, or the interpreter would try, and complain, at its exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
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
        raise RuntimeError(f"{args.name}: {error}") from error
    weights.load(out)
    _ready(out)


def _ready(directory: str) -> None:
    print(f'ready: dcp-ref generate "The old man looked at the sea" --model {shlex.quote(directory)}')


def _info(args: argparse.Namespace) -> None:
    """Print what runs here."""
    facts = {
        "dcp-ref": __version__,
        "backend": "native" if native.available() else "numpy",
        "simd": native.simd_level() or "none: the C extension is not built (install a C compiler, then reinstall)",
        "threads": f"{native.threads()} in the kernels, on {os.cpu_count()} processors",
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
