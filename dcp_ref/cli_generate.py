"""`dcp-ref generate`: prompts in, their continuations out as they grow."""

import argparse
import json
import sys
import time
from typing import Any

from dcp_ref import cli_streams, inputs, options, weights
from dcp_ref.runtime.block import Stats
from dcp_ref.runtime.engine import Engine
from dcp_ref.runtime.generation import Row, make_rows, prompt_ids, step
from dcp_ref.runtime.sampling import Sampling


def run(args: argparse.Namespace) -> None:
    """Stream the prompts' continuations to stdout, then facts to stderr; or one JSON object."""
    prompts = _prompts(args)
    stop = [_utf8("--stop", text.encode("utf-8", "surrogateescape")) for text in args.stop]
    sampling = Sampling(args.temperature, args.top_k, args.top_p)
    model = weights.load(args.model)
    if model.tokenizer is None:
        raise ValueError(f"{args.model} has no tokenizer: only dcp_ref.generate can use it, with token ids")
    ids = [prompt_ids(model, text, name) for name, text in prompts]
    rows = make_rows(model, ids, args.max_new_tokens, args.seed, stop)
    engine = options.engine(model, args)
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
            line = ("{new_tokens} tokens, {tokens_per_second} tokens/s; live {live_tokens} of {seen_tokens} "
                    "tokens seen ({kept:.0%}, {layers} layers together); cache {cache_bytes} bytes")
            cli_streams.say("dcp-ref", line.format(**facts))


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
        "policy": str(engine.policy),
    }


def _prompts(args: argparse.Namespace) -> list[tuple[str, str]]:
    """(name for messages, text) of each prompt: the arguments, then the files, or else standard input."""
    names = ["the prompt"] if len(args.prompts) == 1 else [f"prompt {n + 1}" for n in range(len(args.prompts))]
    data = [(name, text.encode("utf-8", "surrogateescape")) for name, text in zip(names, args.prompts, strict=True)]
    inputs.check(args.file)
    data += [(inputs.name(path), _read(path)) for path in args.file or ([] if data else [inputs.STANDARD])]
    return [(name, _utf8(name, text)) for name, text in data]


def _read(path: str) -> bytes:
    """A prompt without the newline that ends its file."""
    if path == inputs.STANDARD and (sys.stdin is None or sys.stdin.isatty()):
        raise ValueError('give a prompt, as in: dcp-ref generate "The old man looked at the sea"')
    return inputs.read(path).removesuffix(b"\n").removesuffix(b"\r")


def _utf8(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 (byte {error.start + 1})") from None
