"""`dcp-ref evaluate`: perplexity and context kept on texts, for one rule or many, and zero-shot tasks."""

import argparse
import json
import math
from typing import Any

from dcp_ref.analysis import perplexity, tasks, zero_shot
from dcp_ref.analysis.table import markdown, percent
from dcp_ref.analysis.texts import count_bytes, load, read_tokens, tokenizer_of
from dcp_ref.checkpoints import inputs
from dcp_ref.cli import evaluate_sweep, options
from dcp_ref.runtime.engine import Engine

NEEDS = {  # an option, and the options that mean nothing without it
    "text": ("context", "stride", "max_tokens", "batch", "sweep"),
    "task": ("data", "limit"),
    "sweep": ("models", "dense", "thresholds", "out"),
}
HELP = "measure perplexity and context kept, or accuracy in zero-shot tasks"
DESCRIPTION = """Measure perplexity and the share of context kept on texts, or accuracy in a zero-shot task.

Texts go through the cache token by token, in windows of T tokens that begin every S tokens. Each window scores the
tokens that no earlier window scored: so from the second window on, a scored token has at least T - S tokens of
context. The share kept is the mean, over layers, of how much of the scored tokens' context a layer still holds.
"""
EPILOG = """examples:
  dcp-ref evaluate --text valid.txt.xz --max-tokens 20000
  dcp-ref evaluate --text book.txt --policy sinks:4,60 --stride 128
  dcp-ref evaluate --text book.txt --sweep --out curve
  dcp-ref evaluate --task hellaswag --data hellaswag.jsonl --limit 100
"""


def add_options(p: argparse.ArgumentParser) -> None:
    options.add_model(p, default=None)
    text = p.add_argument_group("perplexity").add_argument
    text("--text", nargs="+", action="extend", default=[], metavar="FILE",
         help="UTF-8 text, as it is or as .xz; - is standard input; lines <|endoftext|> separate documents")
    text("--context", type=int, metavar="T", help="tokens of a window (default: n_positions)")
    text("--stride", type=int, metavar="S", help="tokens from one window's start to the next's (default: the context)")
    text("--max-tokens", type=int, metavar="N", help="score the first N tokens only (default: all)")
    text("--batch", type=int, metavar="N", help="windows decoded at once (default: as many as 1 GB holds, at most 64)")
    evaluate_sweep.add_options(p)
    task = p.add_argument_group("zero-shot task").add_argument
    task("--task", choices=sorted(tasks.TASKS), help="the task; a learned rule is compared with the dense policy")
    task("--data", metavar="FILE", help="its items, one JSON object a line; - is standard input")
    task("--limit", type=int, metavar="N", help="use the first N items only (default: all)")
    options.add_engine(p)
    options.add_json(p)


def run(args: argparse.Namespace) -> None:
    """Measure, then print tables or one JSON object."""
    check(args)
    (_task if args.task else evaluate_sweep.run if args.sweep else _text)(args)


def check(args: argparse.Namespace) -> None:
    """Raises ValueError for options that do not go together."""
    inputs.check(args.text)
    def given(name: str) -> bool:
        value = getattr(args, name)
        return not (value is None or value is False or value == [])

    if given("text") == given("task"):
        raise ValueError("give --text FILE, for perplexity, or --task NAME --data FILE, and not both")
    for needed, names in NEEDS.items():
        for name in names:
            if given(name) and not given(needed):
                raise ValueError(f"--{name.replace('_', '-')} goes with --{needed}: add it, or leave this out")
    if args.task and not args.data:
        raise ValueError(f"--task {args.task} needs --data FILE, its items")
    fixed = (args.policy, args.kept, args.batch) != (None, None, None) or args.threshold != 0
    if args.sweep and fixed:
        raise ValueError("--sweep chooses policies, thresholds, shares and the batch itself: leave those out")


def _text(args: argparse.Namespace) -> None:
    model = load(args.model or options.DEFAULT_MODEL)
    engine = options.engine(model, args)
    tokens = read_tokens(model, args.text, args.max_tokens)
    context, stride = perplexity.check_windows(model.config, tokens, args.context, args.stride)
    found = perplexity.evaluate(engine, tokens, context, stride, batch=args.batch, progress="evaluate")
    result = {**_facts(args, engine), "context": context, "stride": stride,
              **perplexity.report(found, count_bytes(model, tokens))}
    print(json.dumps(result) if args.json else _text_report(result))


def _facts(args: argparse.Namespace, engine: Engine) -> dict[str, Any]:
    threshold = engine.threshold if math.isfinite(engine.threshold) else str(engine.threshold)  # JSON has no infinity
    return {"model": args.model or options.DEFAULT_MODEL, "policy": str(engine.policy), "threshold": threshold,
            "weights": args.weights, "kv": args.kv, "backend": engine.backend}


def _text_report(result: dict[str, Any]) -> str:
    line = ("{model}, policy {policy}{at}: perplexity {perplexity:.2f} a token ({nats_per_token:.4f} nats{bits}), "
            "context kept {kept}\n{tokens} tokens, windows of {context}, stride {stride}").format(
        **result, kept=percent(result["share_kept"]),
        at=f", threshold {result['threshold']}" if result["threshold"] else "",
        bits="" if result["bits_per_byte"] is None else f", {result['bits_per_byte']:.4f} bits a byte")
    layers = [(n, percent(share)) for n, share in enumerate(result["layers_kept"])]
    positions = [(f"{p['first']} - {p['last']}", p["tokens"], f"{p['perplexity']:.2f}", percent(p["share_kept"]))
                 for p in result["positions"]]
    return "\n\n".join([line, markdown(["layer", "kept"], layers),
                        markdown(["earlier tokens", "tokens", "perplexity", "kept"], positions)])


def _task(args: argparse.Namespace) -> None:
    questions = tasks.read_questions(args.task, args.data, args.limit)
    model = load(args.model or options.DEFAULT_MODEL)
    engine = options.engine(model, args)
    try:
        encoded = zero_shot.encode(questions, tokenizer_of(model), model.config.n_positions)
    except ValueError as error:
        raise ValueError(f"{inputs.name(args.data)}, {error}") from None
    engines = [engine]
    if engine.policy.learned:
        nothing = {"policy": "dense", "threshold": 0.0, "kept": None}
        engines.append(options.engine(model, argparse.Namespace(**vars(args) | nothing)))
    results = {str(each.policy): zero_shot.answer(each, args.task, questions, encoded, str(each.policy))
               for each in engines}
    facts = {**_facts(args, engine), "task": args.task}
    print(json.dumps({**facts, "results": results}) if args.json else _task_report(facts, results))


def _task_report(facts: dict[str, Any], results: dict[str, dict[str, Any]]) -> str:
    first = next(iter(results.values()))
    rows = [[name, *(_cell(result, name) for result in results.values()), percent(first["chance"])]
            for name in ("accuracy", "accuracy_normalized") if name in first]
    if "perplexity" in first:
        rows.append(["perplexity of the word", *(f"{result['perplexity']:.2f}" for result in results.values()), ""])
    note = f"\n{first['cut']} contexts were cut from the left: they did not fit n_positions" if first["cut"] else ""
    at = f", threshold {facts['threshold']}" if facts["threshold"] else ""
    title = f"{facts['model']}{at}: {facts['task']}, {first['items']} items{note}"
    return f"{title}\n\n{markdown([facts['task'], *results, 'chance'], rows)}"


def _cell(result: dict[str, Any], name: str) -> str:
    error = result[f"{name}_error"]
    return f"{result[name]:.1%}" + ("" if error is None else f" ± {error:.1%}")
