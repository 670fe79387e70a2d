"""The options of the `dcp-ref` command."""

import argparse
import dataclasses
import re
import sys
from typing import Any, get_args, get_origin

from dcp_ref import __version__, policies
from dcp_ref.analysis.tasks import TASKS
from dcp_ref.checkpoints.weights import Model
from dcp_ref.runtime.engine import BACKENDS, Engine
from dcp_ref.runtime.precision import STORAGES
from dcp_ref.training import TrainSettings

EXAMPLES = """examples:
  dcp-ref generate "The old man looked at the sea"
  dcp-ref generate --file chapter.txt --max-new-tokens 50 --temperature 0
  dcp-ref train --text book.txt --out dense
  dcp-ref train --text book.txt --out pruned --init dense --prune
  dcp-ref evaluate --text book.txt
  dcp-ref COMMAND --help

exit code: 0; 1 after a failure under way, 2 for bad input, 130 after Ctrl-C. Results are on stdout, all else on stderr.
"""

DEFAULT_MODEL = "tiny"
EVALUATE = """Perplexity and the share of context kept, token by token through the cache; or a zero-shot task.

Windows of T tokens begin every S tokens, and each scores the tokens that no earlier one did: from the second
window on, a scored token has at least T - S tokens of context. Kept is the mean, over layers and pairs of a scored
row and an earlier token of its window, of what the layer still holds.
"""
EVALUATE_EXAMPLES = """examples:
  dcp-ref evaluate --text valid.txt.xz --max-tokens 20000
  dcp-ref evaluate --text book.txt --policy sinks:4,60 --stride 128
  dcp-ref evaluate --text book.txt --sweep --out curve
  dcp-ref evaluate --task hellaswag --data hellaswag.jsonl --limit 100
"""
WAYS = """ways to train what is dropped, which go together as they make sense:
  --prune                                        from scratch, weights and rule together
  --prune --init DENSE                           a dense model learns what it can do without (the paper)
  --prune --init DENSE --only-interaction        the rule alone; the paper found this not to be enough
  --prune --init DENSE --teacher DENSE           learning from the dense model's distribution too
  --prune --propagate-in-depth                   what one layer drops, later ones drop too
  --prune --int-n-embd 4                         a cheaper rule, down to a width of 1
  --prune --int-delay 16                         no token is dropped in its first 16 steps
  --prune --gamma 0.05                           how much to drop, by the weight of the sparsity loss
  --prune --target-kept 0.2                      or by the share to keep: gamma is steered
"""


class Parser(argparse.ArgumentParser):
    """Takes -1e-3 and -inf for numbers, and raises OSError for help that cannot be written, which argparse does not.

    So do the parsers of its commands.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._negative_number_matcher = re.compile(r"-(\.?\d|inf(inity)?$)", re.IGNORECASE)

    def _print_message(self, message: str, file: Any = None) -> None:
        (file or sys.stderr).write(message)


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command; `args.command` is None when none is given."""
    top = Parser(
        prog="dcp-ref", description="Dynamic Context Pruning: GPT-2 that drops the context it does not need.",
        epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    top.add_argument("--version", action="version", version=f"dcp-ref {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    _generate_options(commands.add_parser("generate", help="continue prompts"))
    _train_options(commands.add_parser("train", help="train a model on text", epilog=WAYS,
                                       formatter_class=argparse.RawDescriptionHelpFormatter))

    _evaluate_options(commands.add_parser(
        "evaluate", help="measure perplexity and context kept, or accuracy in zero-shot tasks",
        description=EVALUATE, epilog=EVALUATE_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter))

    p = commands.add_parser("download", help="fetch a GPT-2 from the Hugging Face hub")
    p.add_argument("name", help="gpt2, gpt2-medium, ..., or owner/name")
    p.add_argument("--out", metavar="DIR", help="where to; without it, a directory of the model's name, here")

    _bench_options(commands.add_parser("bench", help="measure what pruning is worth on this machine"))

    p = commands.add_parser("info", help="show what runs here: backend, versions, models")
    p.add_argument("--json", action="store_true", help="print one JSON object")
    return top


def _generate_options(p: argparse.ArgumentParser) -> None:
    add = p.add_argument
    add("prompts", nargs="*", metavar="PROMPT", help="a text to continue; without any, standard input is one")
    add("--file", nargs="+", action="extend", default=[], help="files, each one prompt; - is standard input")
    add("--model", default="tiny", help="a model directory, or the name of a shipped model (default: tiny)")
    add("--max-new-tokens", type=int, default=100, metavar="N", help="tokens to add, at most (default: 100)")
    add("--temperature", type=float, default=0.8, metavar="X", help="0 takes the likeliest token (default: 0.8)")
    add("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens only (default: from all)")
    add("--top-p", type=float, default=0.95, metavar="P", help="then from the fewest of probability P (default: 0.95)")
    add("--seed", type=int, default=0, metavar="N", help="the same seed gives the same text (default: 0)")
    add("--stop", action="append", default=[], metavar="TEXT",
        help=r"end before this text; \n, \t, \r and \\ stand for newline, tab, return and backslash; can be repeated")
    engine_options(p)
    add("--json", action="store_true", help="print one JSON object, at the end")


def _bench_options(p: argparse.ArgumentParser) -> None:
    add = p.add_argument
    add("--quick", action="store_true", help="fewer lengths, shares and rounds: half a minute instead of two")
    add("--batch", type=int, default=8, metavar="N", help="sequences decoded at once (default: 8)")
    storage_options(p)
    add("--out", metavar="DIR", help="write the table, JSON and plots there too")
    add("--json", action="store_true", help="print one JSON object")


def _evaluate_options(p: argparse.ArgumentParser) -> None:
    add = p.add_argument
    add("--text", nargs="+", action="extend", default=[], metavar="FILE",
        help="texts to measure on: UTF-8, or .xz; - is standard input; lines <|endoftext|> separate documents")
    add("--model", help="a model directory, or the name of a shipped model (default: tiny)")
    add("--context", type=int, metavar="T", help="tokens of a window (default: n_positions)")
    add("--stride", type=int, metavar="S", help="tokens from window to window (default: the context)")
    add("--max-tokens", type=int, metavar="N", help="score the first N tokens only (default: all)")
    add("--batch", type=int, metavar="N", help="windows side by side (default: what a gigabyte holds, at most 64)")
    add("--sweep", action="store_true", help="perplexity against context kept, for the learned rule and the others")
    add("--models", nargs="+", action="extend", default=[], metavar="DIR",
        help="sweep: a point each, at threshold 0; without --model, there is no curve over thresholds")
    add("--dense", metavar="DIR", help="sweep: a model for dense and fixed rules (default: the same, nothing learned)")
    add("--thresholds", nargs="+", type=float, action="extend", default=[], metavar="T",
        help="sweep: of the learned rule; 0 is always measured too (default: those that keep about 100, 50, 20, 10, 5, "
             "2 and 1%%)")
    add("--out", metavar="PREFIX", help="sweep: write PREFIX.json, PREFIX.md and PREFIX.png, which needs matplotlib")
    add("--task", choices=sorted(TASKS), help="a zero-shot task; its dense result comes beside a learned one")
    add("--data", metavar="FILE", help="task: its items, a JSON object a line; - is standard input")
    add("--limit", type=int, metavar="N", help="task: the first N items only (default: all)")
    engine_options(p)
    add("--json", action="store_true", help="print one JSON object")


def engine_options(p: argparse.ArgumentParser) -> None:
    """Those of Engine, under the names of its arguments."""
    add = p.add_argument
    add("--backend", choices=sorted(BACKENDS), help="C or NumPy (default: native where it is built)")
    add("--policy", metavar="RULE", help=f"what drops tokens: {policies.FORMS} (default: learned, if the model can)")
    add("--threshold", type=float, default=0.0, metavar="T",
        help="learned: drop what has no score above T; lower keeps more (default: 0)")
    storage_options(p)
    add("--max-cache-bytes", type=int, metavar="N", help="more for keys and values is an error (default: no bound)")


def storage_options(p: argparse.ArgumentParser) -> None:
    """How Engine stores numbers, and its threads."""
    add = p.add_argument
    add("--weights", choices=STORAGES, default="float32", help="how weights are stored (default: float32)")
    add("--kv", choices=STORAGES, default="float32", help="how keys and values are stored (default: float32)")
    add("--threads", type=int, metavar="N", help="at most (default: all that OMP_NUM_THREADS allows)")


def engine(model: Model, args: argparse.Namespace) -> Engine:
    """The engine that those options ask for. Raises ValueError, RuntimeError as Engine does."""
    policy = None if args.policy is None else policies.parse(args.policy)
    return Engine(model, args.backend, policy=policy, threshold=args.threshold, weights=args.weights, kv=args.kv,
                  threads=args.threads, max_cache_bytes=args.max_cache_bytes)


def _train_options(p: argparse.ArgumentParser) -> None:
    """An option for each field of TrainSettings."""
    for f in dataclasses.fields(TrainSettings):
        flag, text, required = "--" + f.name.replace("_", "-"), f.metadata["help"], f.default is dataclasses.MISSING
        kind: Any = next((t for t in get_args(f.type) if t is not type(None)), f.type)
        if kind is bool:
            p.add_argument(flag, action="store_true", help=text)
        elif get_origin(f.type) is tuple:
            p.add_argument(flag, nargs="+", action="extend", default=[], required=required, metavar="FILE", help=text)
        else:
            metavar = {int: "N", float: "X", str: "PATH"}[kind]
            text += f" (default: {f.default})" if kind is not str and f.default is not None else ""
            p.add_argument(flag, type=kind, default=f.default, required=required, metavar=metavar, help=text)
