"""`dcp-ref evaluate`: perplexity and context kept on texts, their curve over rules, and zero-shot tasks."""

import argparse
import json
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from dcp_ref import options, weights
from dcp_ref.analysis import perplexity, plot, sweep, tasks, zero_shot
from dcp_ref.analysis.table import markdown, percent
from dcp_ref.runtime.engine import Engine
from dcp_ref.tokenizer import Tokenizer
from dcp_ref.training import data
from dcp_ref.weights import Model

NEEDS = {  # an option, and those that mean nothing without it
    "text": ("context", "stride", "max_tokens", "batch", "sweep"),
    "task": ("data", "limit"),
    "sweep": ("models", "dense", "thresholds", "out"),
}
DEFAULT_MODEL = "tiny"


def run(args: argparse.Namespace) -> None:
    """Measure, then print tables, or one JSON object."""
    check(args)
    (_task if args.task else _sweep if args.sweep else _text)(args)


def check(args: argparse.Namespace) -> None:
    """Raises ValueError for options that do not go together."""
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
    model = load(args.model or DEFAULT_MODEL)
    engine = options.engine(model, args)
    tokens = read_tokens(model.tokenizer, args)
    context, stride = perplexity.check_windows(model.config, tokens, args.context, args.stride)
    found = perplexity.evaluate(engine, tokens, context, stride, batch=args.batch, progress="evaluate")
    result = {**_facts(args, engine), "context": context, "stride": stride,
              **perplexity.report(found, count_bytes(model.tokenizer, tokens))}
    print(json.dumps(result) if args.json else _text_report(result))


def _facts(args: argparse.Namespace, engine: Engine) -> dict[str, Any]:
    threshold = engine.threshold if math.isfinite(engine.threshold) else str(engine.threshold)  # JSON has no infinity
    return {"model": args.model or DEFAULT_MODEL, "policy": str(engine.policy), "threshold": threshold,
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


def _sweep(args: argparse.Namespace) -> None:
    if args.out:
        _prepare(args.out)
    plan = _plan(args)
    tokens = _common_tokens(plan, args)
    n_bytes = count_bytes(plan.base[1].tokenizer, tokens)
    context, stride = perplexity.check_windows(plan.base[1].config, tokens, args.context, args.stride)
    points = sweep.measure(plan, tokens, n_bytes, context, stride, progress=True, backend=args.backend,
                           weights=args.weights, kv=args.kv, threads=args.threads,
                           max_cache_bytes=args.max_cache_bytes)
    result = {"tokens": len(tokens) - 1, "bytes": n_bytes, "context": context, "stride": stride,
              "weights": args.weights, "kv": args.kv, "points": [point._asdict() for point in points]}
    text = f"{len(tokens) - 1} tokens, windows of {context}, stride {stride}\n\n{sweep.report(points)}"
    print(json.dumps(result) if args.json else text)
    if args.out:
        Path(f"{args.out}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        Path(f"{args.out}.md").write_text(text + "\n", encoding="utf-8")
        plot.plot(points, Path(f"{args.out}.png"), f"{len(tokens) - 1:,} tokens, in windows of {context}")


def _prepare(out: str) -> None:
    """Before the work: what would keep the files from being written. Raises ValueError, OSError."""
    plot.check_matplotlib()
    if out.endswith("/") or Path(out).is_dir():
        raise ValueError(f"--out {out} is a directory: give the beginning of file names in it, as {Path(out, 'curve')}")
    Path(out).parent.mkdir(parents=True, exist_ok=True)


def _plan(args: argparse.Namespace) -> sweep.Sweep:
    name = args.model or (None if args.models else DEFAULT_MODEL)
    learned = (name, load(name)) if name else None
    others = [(other, load(other)) for other in args.models]
    base = (args.dense, load(args.dense)) if args.dense else learned or others[0]
    return sweep.Sweep(learned, others, base, args.thresholds or None)


def _common_tokens(plan: sweep.Sweep, args: argparse.Namespace) -> np.ndarray:  # -> [N]
    """The texts' tokens, if all models find the same. Raises ValueError."""
    tokens = read_tokens(plan.base[1].tokenizer, args)
    for name, model in plan.pruned:
        if model is not plan.base[1] and not np.array_equal(read_tokens(model.tokenizer, args), tokens):
            raise ValueError(f"{name} and {plan.base[0]} have different tokenizers: their perplexities a token cannot "
                             "be compared; sweep each by itself")
    return tokens


def _task(args: argparse.Namespace) -> None:
    questions = tasks.read_questions(args.task, args.data, args.limit)
    model = load(args.model or DEFAULT_MODEL)
    engine = options.engine(model, args)
    assert model.tokenizer is not None
    try:
        encoded = zero_shot.encode(questions, model.tokenizer, model.config.n_positions)
    except ValueError as error:
        raise ValueError(f"{args.data}: {error}") from None
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


def load(name: str) -> Model:
    """A model with a tokenizer. Raises ValueError."""
    model = weights.load(name)
    if model.tokenizer is None:
        raise ValueError(f"{name} has no tokenizer, and texts cannot be read without one")
    return model


def read_tokens(tokenizer: Tokenizer | None, args: argparse.Namespace) -> np.ndarray:  # -> [N]
    """The texts as training reads them, up to the last token that is to be scored. Raises ValueError."""
    assert tokenizer is not None
    if args.max_tokens is not None and args.max_tokens < 2:
        raise ValueError(f"--max-tokens must be 2 or more, not {args.max_tokens}")
    documents = data.read_documents(args.text)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        tokens = data.tokenize(tokenizer, documents, pool)
    return tokens if args.max_tokens is None else tokens[: args.max_tokens + 1]


def count_bytes(tokenizer: Tokenizer | None, tokens: Sequence[int] | np.ndarray) -> int:
    """The bytes of text that all tokens but the first, which nothing predicts, stand for."""
    assert tokenizer is not None
    return int(np.array(tokenizer.byte_counts())[np.asarray(tokens[1:], np.int64)].sum())
