"""The `dcp-ref` command: generate | train | download | info."""

import argparse
import dataclasses
import io
import json
import os
import platform
import shlex
import sys
import time
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dcp_ref import __version__, files, options, weights
from dcp_ref.runtime import native
from dcp_ref.runtime.block import Stats
from dcp_ref.runtime.engine import Engine
from dcp_ref.runtime.generation import Row, make_rows, prompt_ids, step
from dcp_ref.runtime.sampling import Sampling
from dcp_ref.training import TrainSettings, train

DOWNLOADED = ["config.json", "model.safetensors", "model.safetensors.index.json", "model-*.safetensors",
              "tokenizer.json", "vocab.json", "merges.txt"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, 1 for a failure under way, 2 for bad input, 130 after Ctrl-C."""
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


def _generate(args: argparse.Namespace) -> None:
    """Stream the prompts' continuations to stdout, then facts to stderr; or one JSON object."""
    prompts = _prompts(args)
    stop = [_utf8("--stop", text.encode("utf-8", "surrogateescape")) for text in args.stop]
    sampling = Sampling(args.temperature, args.top_k, args.top_p)
    model = weights.load(args.model)
    if model.tokenizer is None:
        raise ValueError(f"{args.model} has no tokenizer: only dcp_ref.generate can use it, with token ids")
    ids = [prompt_ids(model, text, name) for name, text in prompts]
    rows = make_rows(model, ids, args.max_new_tokens, args.seed, stop)
    engine = Engine(model, args.backend)
    output = _Output([text for _, text in prompts], rows, args.json)
    began, stats = time.monotonic(), engine.stats()
    try:
        output.update()
        while step(engine, rows, sampling):
            stats = engine.stats()  # of whole steps: Ctrl-C comes in the middle of one
            output.update()
    finally:
        for row in rows:
            row.interrupt()
        output.finish(_facts(engine, stats, rows, time.monotonic() - began))


class _Output:
    """Prints texts one below the other, though they grow side by side; or everything as JSON at the end."""

    def __init__(self, prompts: list[str], rows: list[Row], as_json: bool) -> None:
        self.prompts, self.rows, self.as_json, self.written = prompts, rows, as_json, 0

    def update(self) -> None:
        """Print what has come: the texts up to the first that has not ended."""
        if self.as_json:
            return
        text = ""
        for n, (prompt, row) in enumerate(zip(self.prompts, self.rows, strict=True), 1):
            heading = f"--- {n} of {len(self.rows)}\n" if len(self.rows) > 1 else ""
            text += heading + prompt + row.settled()
            if row.stop_reason is None:
                break
            text += "\n"
        new, self.written = text[self.written :], len(text)
        print(new, end="", flush=True)

    def finish(self, facts: dict[str, Any]) -> None:
        """Print the rest: all rows have ended."""
        self.update()
        if self.as_json:
            generations = [{"prompt": prompt, "text": row.text, "ids": row.ids, "stop_reason": row.stop_reason}
                           for prompt, row in zip(self.prompts, self.rows, strict=True)]
            print(json.dumps({"generations": generations, **facts}), flush=True)
        else:
            line = ("dcp-ref: {new_tokens} tokens, {tokens_per_second} tokens/s; live {live_tokens} of {seen_tokens} "
                    "tokens seen ({kept:.0%}, {layers} layers together); cache {cache_bytes} bytes")
            print(line.format(**facts), file=sys.stderr)


def _facts(engine: Engine, stats: Stats, rows: list[Row], seconds: float) -> dict[str, Any]:
    new, seen = sum(len(row.ids) for row in rows), sum(row.seen for row in rows) * engine.config.n_layer
    return {
        "new_tokens": new,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(new / max(seconds, 1e-9), 1),
        "live_tokens": stats.live_tokens,
        "seen_tokens": seen,
        "kept": round(stats.live_tokens / max(seen, 1), 4),
        "layers": engine.config.n_layer,
        "cache_bytes": stats.bytes_owned,
        "backend": engine.backend,
    }


def _prompts(args: argparse.Namespace) -> list[tuple[str, str]]:
    """(name for messages, text) of each prompt: the arguments, then the files, or else standard input."""
    names = ["the prompt"] if len(args.prompts) == 1 else [f"prompt {n + 1}" for n in range(len(args.prompts))]
    data = [(name, text.encode("utf-8", "surrogateescape")) for name, text in zip(names, args.prompts, strict=True)]
    data += [("standard input" if path == "-" else path, _read(path)) for path in args.file or ([] if data else ["-"])]
    return [(name, _utf8(name, text)) for name, text in data]


def _read(path: str) -> bytes:
    """A prompt without the newline that ends its file; "-" is standard input."""
    if path == "-" and (sys.stdin is None or sys.stdin.isatty()):
        raise ValueError('give a prompt, as in: dcp-ref generate "The old man looked at the sea"')
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    return data.removesuffix(b"\n").removesuffix(b"\r")


def _utf8(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 (byte {error.start + 1})") from None


def _train(args: argparse.Namespace) -> None:
    """Train a model, or go on with a run that was stopped."""
    settings = TrainSettings(**{f.name: getattr(args, f.name) for f in dataclasses.fields(TrainSettings)})
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
        "threads": f"1 in the cache; NumPy's matrix products have their own, on {os.cpu_count()} processors",
        "python": platform.python_version(),
        **{name: version(name) for name in ("numpy", "cffi", "safetensors", "tokenizers", "tqdm")},
        "platform": platform.platform(),
        "models": ", ".join(files.shipped_models()) or "none",
    }
    print(json.dumps(facts) if args.json else "\n".join(f"{name:12} {value}" for name, value in facts.items()))


COMMANDS = {"generate": _generate, "train": _train, "download": _download, "info": _info}


if __name__ == "__main__":
    sys.exit(main())
