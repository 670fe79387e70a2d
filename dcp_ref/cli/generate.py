"""`dcp-ref generate`: continue prompts, and print the text as it grows."""

import argparse
import json
import re
import sys
import time
from collections.abc import Callable
from typing import Any

from dcp_ref.checkpoints import inputs, weights
from dcp_ref.checkpoints.inputs import decoded
from dcp_ref.cli import caches, corpus_job, options, streams, trace
from dcp_ref.corpus import Continuer
from dcp_ref.runtime.engine import Engine
from dcp_ref.runtime.generation import Row, make_rows, prompt_ids, step
from dcp_ref.runtime.pins import prompt_pins
from dcp_ref.runtime.sampling import Sampling

HELP = "continue prompts"


def add_options(p: argparse.ArgumentParser) -> None:
    add = p.add_argument
    add("prompts", nargs="*", metavar="PROMPT", help="a text to continue; without any, standard input is the prompt")
    add("--file", nargs="+", action="extend", default=[], help="files, each one prompt; - is standard input")
    options.add_model(p)
    add("--max-new-tokens", type=int, default=100, metavar="N", help="add at most N tokens (default: 100)")
    add("--temperature", type=float, default=0.8, metavar="X",
        help="divide the logits by X; 0 takes the likeliest token (default: 0.8)")
    add("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens only (default: from all)")
    add("--top-p", type=float, default=0.95, metavar="P",
        help="draw from the fewest tokens whose probabilities add up to P (default: 0.95)")
    add("--seed", type=int, default=0, metavar="N", help="the same seed gives the same text (default: 0)")
    add("--stop", action="append", default=[], metavar="TEXT",
        help=r"end before this text; \n, \t, \r and \\ mean newline, tab, return and backslash; can be repeated")
    add("--trace", metavar="FILE",
        help="also write who dropped whom, and why: a page (.html), or data (.json, .safetensors); several prompts get "
             "numbered files")
    add("--save-cache", metavar="FILE", help="also write what was kept of the prompt, for --cache; takes one prompt")
    add("--cache", metavar="FILE",
        help="go on from what --save-cache wrote, with the same model, rule and storage: prompts are what follows its "
             "text, which is not read again")
    options.add_pin(p)
    options.add_engine(p)
    options.add_json(p)
    options.add_job(p, required=False)


def run(args: argparse.Namespace) -> int:
    """Stream the texts to stdout, then a line of facts to stderr; or print one JSON object; or do a job."""
    if args.input:
        return _job(args)
    options.check_no_job(args)
    if args.trace:
        trace.check_suffix(args.trace)
    pin = _utf8("--pin", args.pin.encode("utf-8", "surrogateescape"))
    prompts = [(name, pin + text) for name, text in _prompts(args)]
    if args.save_cache or args.cache:
        caches.check(args, len(prompts))
    stop = _stop(args)
    sampling = Sampling(args.temperature, args.top_k, args.top_p)
    model = weights.load(args.model)
    if model.tokenizer is None:
        raise ValueError(f"{args.model} has no tokenizer: only dcp_ref.generate can use it, with token ids")
    ids = [prompt_ids(model, text, name) for name, text in prompts]
    rows = make_rows(model, ids, args.max_new_tokens, args.seed, stop, args.trace is not None)
    if pin:
        for row, (name, text) in zip(rows, prompts, strict=True):
            row.pinned = prompt_pins(pin, text, row.prompt, model.tokenizer, name)
    engine = options.engine(model, args)
    if args.cache:
        caches.restore(engine, rows, [name for name, _ in prompts], args.cache)
    output = _Output([text for _, text in prompts], rows, args.json)
    began, held = time.monotonic(), (0, 0, 0)
    if args.save_cache:
        caches.first_step(engine, rows[0], sampling, args.save_cache)
        held = _held(engine, rows, held)
    try:
        output.update()
        while step(engine, rows, sampling):
            held = _held(engine, rows, held)  # now: Ctrl-C would leave a step half done
            output.update()
    finally:
        for row in rows:
            row.interrupt()
        output.finish(_facts(engine, held, rows, time.monotonic() - began), engine)
    if args.trace:
        trace.write_rows(model, engine, rows, args.model, args.trace)
    return 0


def _job(args: argparse.Namespace) -> int:
    """Continue the prompts of --input into the directory --out. Returns the exit code."""
    for name in ("prompts", "file", "trace", "pin", "json", "cache", "save-cache"):
        if getattr(args, name.replace("-", "_")):
            raise ValueError(f"--input is a job of its own: leave out {'PROMPT' if name == 'prompts' else '--' + name}")
    described = corpus_job.described(args)
    mapper = Continuer(**corpus_job.engine_options(args), max_new_tokens=args.max_new_tokens,
                       temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, seed=args.seed,
                       stop=_stop(args))
    return corpus_job.run(args, mapper, described)


def _stop(args: argparse.Namespace) -> list[str]:
    return [unescaped(_utf8("--stop", text.encode("utf-8", "surrogateescape"))) for text in args.stop]


def unescaped(text: str) -> str:
    r"""The text with \n, \t, \r and \\ replaced by the characters that they mean: a shell does not replace them."""
    meant = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
    return re.sub(r"\\([ntr\\])", lambda found: meant[found[1]], text)


def _held(engine: Engine, rows: list[Row], before: tuple[int, int, int]) -> tuple[int, int, int]:
    """The tokens that all layers hold (of a row that has ended: held then), and the cache's largest size so far: as it
    is, and as if sequences shared nothing."""
    stats = engine.stats()
    size = max(stats.bytes_owned, before[1], *(row.bytes for row in rows))
    return stats.live_tokens + sum(row.live for row in rows), size, max(size, stats.bytes_logical, before[2])


class _Output:
    """Prints the texts one below the other although they grow at the same time; or JSON at the end."""

    def __init__(self, prompts: list[str], rows: list[Row], as_json: bool) -> None:
        self.prompts, self.rows, self.as_json, self.written = prompts, rows, as_json, 0

    def update(self) -> None:
        """Print all that is settled, up to the end of the first text that still grows."""
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

    def finish(self, facts: dict[str, Any], engine: Engine) -> None:
        """Print the rest and the facts, when all rows have ended."""
        self.update()
        if self.as_json:
            generations = [{"prompt": prompt, "text": row.text, "ids": row.ids, "stop_reason": row.stop_reason}
                           for prompt, row in zip(self.prompts, self.rows, strict=True)]
            print(json.dumps({"generations": generations, **facts, "dropped": engine.stats().dropped}), flush=True)
        else:
            line = ("{new_tokens} tokens, {tokens_per_second} tokens/s; live {live_tokens} of {seen_tokens} "
                    "tokens seen ({kept:.0%}, {layers} layers together); cache {cache_bytes} bytes")
            streams.say("dcp-ref", line.format(**facts))
            if any(row.stop_reason == "n_positions" for row in self.rows):
                streams.say("dcp-ref", "a text ended because the model has no position left")


def _facts(engine: Engine, held: tuple[int, int, int], rows: list[Row], seconds: float) -> dict[str, Any]:
    (live, size, logical), stats = held, engine.stats()
    new, seen = sum(len(row.ids) for row in rows), sum(row.seen for row in rows) * engine.config.n_layer
    return {
        "new_tokens": new,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(new / max(seconds, 1e-9), 1),
        "live_tokens": live,
        "seen_tokens": seen,
        "kept": round(live / max(seen, 1), 4),
        "layers": engine.config.n_layer,
        "cache_bytes": size,
        "cache_bytes_logical": logical,
        "cache_bytes_peak": stats.bytes_peak,
        "backend": engine.backend,
        "policy": str(engine.policy),
    }


def _prompts(args: argparse.Namespace) -> list[tuple[str, str]]:
    """(name for messages, text) of each prompt: arguments, then files; without either, standard input."""
    names = ["the prompt"] if len(args.prompts) == 1 else [f"prompt {n + 1}" for n in range(len(args.prompts))]
    prompts = [(name, _utf8(name, text.encode("utf-8", "surrogateescape")))
               for name, text in zip(names, args.prompts, strict=True)]
    if args.file or not prompts:
        inputs.check(args.file)
        files = [(inputs.name(path), _read(path)) for path in args.file or [inputs.STANDARD]]
        prompts += [(name, _utf8(name, data, decoded).removesuffix("\n")) for name, data in files]
    return prompts


def _read(path: str) -> bytes:
    if path == inputs.STANDARD and (sys.stdin is None or sys.stdin.isatty()):
        raise ValueError('give a prompt, as in: dcp-ref generate "The old man looked at the sea"')
    return inputs.read(path)


def _utf8(name: str, data: bytes, decode: Callable[[bytes], str] = bytes.decode) -> str:
    try:
        return decode(data)
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8 (byte {error.start + 1})") from None
