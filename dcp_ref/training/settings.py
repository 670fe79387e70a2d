"""What a training run can be told."""

import dataclasses
import difflib
import json
import math
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar, get_args

from dcp_ref.checkpoints import inputs
from dcp_ref.checkpoints.files import shipped_models
from dcp_ref.config import ALIASES, Config

# On resuming; all else would change the result.
MAY_CHANGE = ("out", "threads", "save_every", "eval_every", "plot", "stop_at")
PATHS = ("text", "valid", "init", "teacher", "config")  # a run knows them from every working directory

Value = TypeVar("Value")


def required(help: str) -> Any:
    """A field without a default. `help` is what the command line says about it."""
    return dataclasses.field(metadata={"help": help})


def option(default: Value, help: str) -> Value:
    """A field with a default, and help as above."""
    return dataclasses.field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class TrainSettings:
    """One field an option. Raises ValueError, naming the field, when a value is impossible."""

    text: tuple[str, ...] = required("UTF-8 files, or .xz; - is standard input; lines <|endoftext|> part documents")
    out: str = required("the directory to make: a model directory, the state to resume from, metrics.jsonl")
    valid: tuple[str, ...] = option((), "text files to validate on; none: the last hundredth of the text's tokens")
    init: str | None = option(None, "start from this model and its tokenizer; none: random weights, a new tokenizer")
    config: str | None = option(
        None, "without init: a config.json, or its text; its vocab_size and eos_token_id are not used"
    )
    prune: bool = option(False, "learn to drop context, best from a dense init; adds interaction weights where needed")
    int_n_embd: int = option(16, "with prune: width of the interaction weights, where they are added")
    propagate_in_depth: bool = option(False, "with prune: what one layer drops, later ones drop too")
    int_delay: int | None = option(
        None, "with prune: steps a token is safe before it can be dropped; none: what init or config says, else 0"
    )
    only_interaction: bool = option(False, "with prune and init: train the interaction weights, leave all others")
    teacher: str | None = option(
        None, "a dense model whose next-token distribution is learned too; without init, its tokenizer is used"
    )
    distill: float = option(1.0, "with teacher: weight of KL(teacher || student)")
    vocab_size: int = option(4096, "tokens of a new tokenizer, at most; init and teacher have theirs")
    context: int | None = option(None, "tokens a sequence; none: n_positions")
    steps: int = option(2000, "steps of the optimizer in all; what learning rate and alpha follow")
    stop_at: int | None = option(None, "end after so many of them; with a later one the run goes on")
    batch: int = option(16, "sequences a step; memory does not grow with it")
    micro_batch: int = option(
        1, "sequences that one thread takes at once: gradients of batch / micro_batch such parts are added up; "
        "one part alone uses the threads of NumPy's BLAS"
    )
    learning_rate: float = option(1e-3, "the peak, after `warmup` steps; it ends at a tenth of it")
    warmup: int = option(100, "steps to reach the peak")
    weight_decay: float = option(0.1, "of the weight matrices, as in AdamW")
    clip: float = option(1.0, "longest gradient")
    gamma: float = option(0.1, "with prune: weight of the sparsity loss; with target_kept only the first")
    target_kept: float | None = option(None, "with prune: steer gamma so that this share of the context is kept")
    alpha_share: float = option(1.0, "with prune: share of the steps over which alpha rises from 1 to 8, and stays")
    seed: int = option(0, "of the initial weights and of the batches")
    eval_every: int = option(250, "steps from one validation to the next")
    eval_windows: int = option(32, "sequences of the validation text")
    save_every: int = option(250, "steps from one checkpoint to the next")
    threads: int | None = option(None, "none: one a processor, at most OMP_NUM_THREADS; the result is always the same")
    plot: bool = option(False, "draw metrics.png in out, at each validation (needs matplotlib)")

    def __post_init__(self) -> None:
        for name in ("text", "valid"):
            paths = getattr(self, name)
            if not isinstance(paths, (list, tuple)):
                given = "one string" if isinstance(paths, str) else repr(paths)
                raise ValueError(f"{name} must be a list of files, not {given}")
            object.__setattr__(self, name, tuple(_path(name, path) for path in paths))
        for name in ("out", "init", "config", "teacher"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _path(name, getattr(self, name)))
        for f in dataclasses.fields(self):
            value, kinds = getattr(self, f.name), get_args(f.type) or (f.type,)  # (int, NoneType) for int | None
            if f.name in ("text", "valid"):
                continue
            fits = isinstance(value, (*kinds, int) if float in kinds else kinds)
            if not fits or (isinstance(value, bool) and bool not in kinds):  # True would pass for 1
                raise ValueError(f"{f.name} must be of type {kinds[0].__name__}, not {value!r}")
        self._check_numbers()
        self._check_combinations()

    def _check_numbers(self) -> None:
        positive = ("int_n_embd", "steps", "batch", "micro_batch", "learning_rate", "clip", "distill", "alpha_share",
                    "eval_every", "eval_windows", "save_every", "threads", "stop_at")
        for name in positive:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be a positive number, not {value!r}")
        for name in ("warmup", "weight_decay", "gamma", "seed", "int_delay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a number of 0 or more, not {value!r}")
        if self.alpha_share > 1:
            raise ValueError(f"alpha_share must be at most 1 (all steps), not {self.alpha_share!r}")
        if self.target_kept is not None and not 0 < self.target_kept < 1:
            raise ValueError(f"target_kept must be between 0 and 1, not {self.target_kept!r}")
        if self.vocab_size < 257:
            raise ValueError(f"vocab_size must be at least 257 (256 bytes and end of text), not {self.vocab_size}")
        if self.context is not None and self.context < 2:
            raise ValueError(f"context must be at least 2, not {self.context}")

    def _check_combinations(self) -> None:
        inputs.check((*self.text, *self.valid))
        if not self.text:
            raise ValueError("text: no file given")
        if not self.out:  # Path("") would be the directory that we are in
            raise ValueError("out: the path is empty; give the directory to make")
        if self.init is not None and self.config is not None:
            raise ValueError("config: the model in init has its own; give one of the two")
        for name in ("int_n_embd", "propagate_in_depth", "int_delay", "only_interaction", "gamma", "target_kept",
                     "alpha_share"):
            if self._given(name) and not self.prune:
                raise ValueError(f"{name}: nothing is dropped without prune; give both")
        if self.only_interaction and self.init is None:
            raise ValueError("only_interaction: without init all other weights would stay random; give both")
        if self.target_kept is not None and self.gamma == 0:
            raise ValueError("gamma: with target_kept it is where gamma starts, and must be positive, not 0")
        if self.distill != 1 and self.teacher is None:
            raise ValueError("distill: there is nothing to learn from without teacher; give both")
        if self.batch % self.micro_batch:
            raise ValueError(f"batch ({self.batch}) must be a multiple of micro_batch ({self.micro_batch})")

    @property
    def end(self) -> int:
        """The step after which this run ends."""
        return min(self.steps, self.stop_at or self.steps)

    def _given(self, name: str) -> bool:
        """Whether that is another value than the default."""
        return bool(getattr(self, name) != getattr(type(self), name))

    def check_vocab_size(self, size: int, source: str) -> None:
        """Raises ValueError when another `vocab_size` was given than the one that is already set."""
        if self._given("vocab_size") and self.vocab_size != size:
            raise ValueError(f"vocab_size is {self.vocab_size}, but {source} has {size}; leave one out")

    def base_config(self) -> Config:
        """What `config` says; without it, a model that a laptop trains in an hour.

        Raises ValueError for one that cannot be used; in one given as text for a field that there is not, too.
        """
        if self.config is None:
            return Config(n_layer=4, n_head=4, n_embd=128, n_positions=512)
        try:
            inline = self.config.lstrip().startswith("{")
            fields = json.loads(self.config if inline else Path(self.config).read_text(encoding="utf-8"))
            config = Config.from_dict(fields)
            if inline:  # those of other programs are known by files, and have more fields
                _check_known(fields)
            return config
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"config {self.config}: {error}") from error

    def with_pruning(self, config: Config) -> Config:
        """`config` as this run trains it.

        Raises ValueError when it has gates already: ones that `prune` does not ask for, or of another width than given.
        """
        if not self.prune:
            if config.int_n_embd is not None:
                raise ValueError(f"prune: {self.init or 'the config'} has interaction weights (int_n_embd "
                                 f"{config.int_n_embd}), and a run would train them: give prune too")
            return config
        if config.int_n_embd is not None and self._given("int_n_embd") and self.int_n_embd != config.int_n_embd:
            raise ValueError(f"int_n_embd is {self.int_n_embd}, but {self.init or 'the config'} has interaction "
                             f"weights already, of width {config.int_n_embd}; leave it out")
        depth = config.propagate_in_depth or self.propagate_in_depth
        delay = config.int_delay if self.int_delay is None else self.int_delay
        return dataclasses.replace(config, int_n_embd=config.int_n_embd or self.int_n_embd, propagate_in_depth=depth,
                                   int_delay=delay)

    def context_of(self, config: Config) -> int:  # T
        """Tokens of a sequence. Raises ValueError when the model has fewer positions, or one: no pair j < i."""
        if config.n_positions < 2:
            raise ValueError("context: the model has 1 position, and a sequence needs at least 2")
        if self.context is not None and self.context > config.n_positions:
            raise ValueError(f"context ({self.context}) must not exceed the model's n_positions ({config.n_positions})")
        return self.context or config.n_positions

    def check_same(self, stored: dict) -> None:
        """Raises ValueError when a run that began with the `stored` settings cannot go on with these.

        An option that is not stored is younger than the run, which had its default. Paths may be spelt in other ways,
        and older runs stored them as they were given.
        """
        stored = {f.name: f.default for f in dataclasses.fields(self)} | stored
        for name, value in self.to_dict().items():
            if name not in MAY_CHANGE and value != (_resolved(stored[name]) if name in PATHS else stored[name]):
                raise ValueError(
                    f"{name} is {value!r}, but {self.out} was begun with {stored[name]!r}: "
                    "give that again to resume, or another out directory to start afresh"
                )

    def to_dict(self) -> dict:
        """What settings.json holds."""
        return {k: _resolved(v) if k in PATHS else v for k, v in dataclasses.asdict(self).items()}


def _path(name: str, path: Any) -> str:
    """A path as text. Raises ValueError, naming the field, when it is none."""
    if not isinstance(path, (str, PathLike)):
        raise ValueError(f"{name} must be a path, not {path!r}")
    return str(path)


def _resolved(paths: Any) -> Any:
    """A path, or each of several, from the root and without links; others, as a config's text, are left."""
    if isinstance(paths, (list, tuple)):
        return [_resolved(path) for path in paths]
    if not isinstance(paths, str) or paths.lstrip().startswith("{") or paths == inputs.STANDARD:
        return paths
    return paths if paths in shipped_models() and not Path(paths).exists() else str(Path(paths).resolve())


def _check_known(fields: dict) -> None:
    known = [*Config().to_dict(), *ALIASES]
    unknown = [f"{name!r} (the nearest is {difflib.get_close_matches(name, known, 1, 0)[0]!r})"
               for name in fields if name not in known]
    if unknown:
        raise ValueError(f"there is no field {', '.join(unknown)}; correct it, or leave it out")
