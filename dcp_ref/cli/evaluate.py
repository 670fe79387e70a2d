"""`dcp-ref evaluate`: perplexity and context kept on texts, their curve over rules, and zero-shot tasks."""

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

NEEDS = {  # an option, and those that mean nothing without it
    "text": ("context", "stride", "max_tokens", "batch", "sweep"),
    "task": ("data", "limit"),
    "sweep": ("models", "dense", "thresholds", "out"),
}


def run(args: argparse.Namespace) -> None:
    """Measure, then print tables, or one JSON object."""
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
    if args.sweep and (args.policy is not None or args.threshold != 0 or args.batch is not None):
        raise ValueError("--sweep chooses policies, thresholds and the batch itself: leave those out")


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
        engines.append(options.engine(model, argparse.Namespace(**{**vars(args), "policy": "dense", "threshold": 0.0})))
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
