"""What the subcommands share: the parser's class, and the options that several of them have."""

import argparse
import difflib
import re
import sys
from typing import Any, NoReturn

from dcp_ref import policies
from dcp_ref.checkpoints.weights import Model
from dcp_ref.runtime.engine import BACKENDS, Engine
from dcp_ref.runtime.precision import STORAGES

DEFAULT_MODEL = "tiny"
OF_A_JOB = ("id", "text", "out", "shard", "format", "limit", "part_rows", "batch", "workers", "ray")  # beside --input


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that takes -1e-3 and -inf for numbers, not options, and raises OSError if it cannot write help.

    Its subparsers are of this class too.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **settings)
        self._negative_number_matcher = re.compile(r"-(\.?\d|inf(inity)?$)", re.IGNORECASE)

    def error(self, message: str) -> NoReturn:
        """Says what a mistyped option or subcommand was perhaps meant to be."""
        mistyped = re.search(r"(?:unrecognized arguments: |invalid choice: ')([^\s=']+)", message)
        meant = difflib.get_close_matches(mistyped[1], self._words(), 1, 0.7) if mistyped else []
        super().error(message + "".join(f"; did you mean {word}?" for word in meant))

    def _words(self) -> list[str]:
        """The options and subcommands of this parser, and the options of its subcommands."""
        words = [option for action in self._actions for option in action.option_strings]
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                words += [word for name, parser in action.choices.items() for word in (name, *parser._words())]
        return words

    def _print_message(self, message: str, file: Any = None) -> None:
        (file or sys.stderr).write(message)


def add_model(p: argparse.ArgumentParser, default: str | None = DEFAULT_MODEL) -> None:
    p.add_argument("--model", default=default, metavar="MODEL",
                   help="a model directory, or the name of a shipped model or of one in Hugging Face's cache "
                        f"(default: {DEFAULT_MODEL})")


def add_json(p: argparse.ArgumentParser) -> None:
    p.add_argument("--json", action="store_true", help="print one JSON object instead")


def add_pin(p: argparse.ArgumentParser) -> None:
    p.add_argument("--pin", default="", metavar="TEXT",
                   help="put TEXT before each text, and pin its tokens: no rule ever drops them. No token may span its "
                        "end: let what follows begin with a space or a line end")


def add_engine(p: argparse.ArgumentParser) -> None:
    """The arguments of Engine, under their names."""
    add_rule(p)
    add_storage(p)
    p.add_argument("--max-cache-bytes", type=int, metavar="N",
                   help="fail rather than use more than N bytes for keys and values")


def add_rule(p: argparse.ArgumentParser) -> None:
    """The arguments of Engine that say what is dropped, and by which backend."""
    add = p.add_argument
    add("--backend", choices=sorted(BACKENDS), help="C (native) or NumPy (default: native if it is built)")
    add("--policy", metavar="RULE",
        help=f"the rule that drops tokens: {policies.FORMS}. Those with a W keep the W newest tokens and, besides, "
             "nothing, each STRIDE-th, the FIRST oldest, or the N most attended to; learned:N is learned, and holds at "
             "most N earlier tokens in each layer (default: learned if the model has a learned rule, else dense)")
    one = p.add_mutually_exclusive_group().add_argument
    one("--threshold", type=float, default=0.0, metavar="T",
        help="the learned rule drops a token unless its score is above T: lower keeps more (default: 0)")
    one("--kept", type=float, metavar="SHARE",
        help="instead: the share of the context to keep, as 0.2; the model's config.json has the threshold for it "
             "(dcp-ref calibrate)")


def add_storage(p: argparse.ArgumentParser) -> None:
    """The arguments of Engine that say how numbers are stored, and how many threads work."""
    add = p.add_argument
    add("--weights", choices=STORAGES, default="float32", help="how weights are stored (default: float32)")
    add("--kv", choices=STORAGES, default="float32", help="how keys and values are stored (default: float32)")
    add("--threads", type=int, metavar="N", help="use at most N threads (default: as many as OMP_NUM_THREADS allows)")


def add_job(p: argparse.ArgumentParser, required: bool) -> None:
    """The options of a job on many documents."""
    add = p.add_argument_group("many documents").add_argument
    add("--input", nargs="+", action="extend", default=[], metavar="FILE", required=required,
        help="rows: JSONL, as it is or as .gz, .xz or .zst, or .parquet; - is standard input")
    add("--id", metavar="NAME", help="the column of ids, which are strings or integers (default: id)")
    add("--text", metavar="NAME", help="the column of texts (default: text)")
    add("--out", metavar="DIR", required=required,
        help="the directory for the parts of the result; the same command again makes those that are missing")
    add("--shard", metavar="I/N", type=_shard, help="do the I-th of N equal shares of the parts, 1/N to N/N")
    add("--format", choices=("jsonl", "parquet"), help="what parts are written as (default: jsonl)")
    add("--limit", type=int, metavar="N", help="read the first N rows only (default: all)")
    add("--part-rows", type=int, metavar="N", help="rows of a part (default: 1000, or fewer that hold 4 MiB)")
    add("--batch", type=int, metavar="N", help="texts decoded at once (default: as many as 1 GB holds, at most 64)")
    add("--workers", type=int, metavar="N",
        help="processes, each with an engine on one thread or --threads (default: this process; all of a cluster)")
    add("--ray", nargs="?", const="local", metavar="ADDRESS",
        help="work on a Ray cluster, or on a local one without an address; needs the extra ray")


def check_no_job(args: argparse.Namespace) -> None:
    """Raises ValueError for options of a job without its input."""
    for name in OF_A_JOB:
        if getattr(args, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} goes with --input: add it, or leave this out")


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"give I/N, as in 1/3, not {text!r}")
    return int(found[1]), int(found[2])


def engine(model: Model, args: argparse.Namespace) -> Engine:
    """The engine that the options of `add_engine` describe. Raises ValueError or RuntimeError as Engine does."""
    policy = None if args.policy is None else policies.parse(args.policy)
    return Engine(model, **engine_arguments(args) | {"policy": policy})


def engine_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """All options of `add_engine`, by Engine's names; the policy is still a name, or None."""
    names = ("policy", "threshold", "kept", "backend", "weights", "kv", "threads", "max_cache_bytes")
    return {name: getattr(args, name) for name in names}
