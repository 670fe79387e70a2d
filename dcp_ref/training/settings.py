"""The settings of a training run: one field an option, each with its help."""

import dataclasses
import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dcp_ref.checkpoints import inputs
from dcp_ref.checkpoints.files import shipped_models
from dcp_ref.config import ALIASES, Config
from dcp_ref.training import settings_checks

MAY_CHANGE = ("out", "threads", "save_every", "eval_every", "plot", "stop_at")  # on resuming: the result stays the same
PATHS = ("text", "valid", "init", "teacher", "config")  # stored absolute: a run may resume in another directory

Value = TypeVar("Value")


def required(help: str) -> Any:
    """A field without a default. `help` is its text on the command line."""
    return dataclasses.field(metadata={"help": help})


def option(default: Value, help: str) -> Value:
    """A field with a default. `help` is its text on the command line, which adds the default unless it is None."""
    return dataclasses.field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class TrainSettings:
    """All that a run is told. Raises ValueError, naming the field, for a value that cannot work."""

    text: tuple[str, ...] = required(
        "UTF-8 text to train on, as it is or as .xz; - is standard input; lines <|endoftext|> separate documents")
    out: str = required("the directory to make: for the model, the state to resume from, and metrics.jsonl")
    valid: tuple[str, ...] = option((), "files to validate on (default: the last 1% of the text)")
    init: str | None = option(
        None, "the model to start from, with its tokenizer (default: random weights and a new tokenizer)")
    config: str | None = option(
        None, "without init: a config.json, or its text; vocab_size and eos_token_id in it are ignored "
        "(default: 4 layers of 128, 512 positions)")
    prune: bool = option(False, "learn to drop context, best from a dense init; adds interaction weights if needed")
    int_n_embd: int = option(16, "with prune: width of interaction weights that are added")
    propagate_in_depth: bool = option(False, "with prune: a token that one layer drops is dropped in later layers too")
    int_delay: int | None = option(
        None, "with prune: keep each token for at least this many steps (default: as init or config says, else 0)")
    only_interaction: bool = option(False, "with prune and init: train the interaction weights and nothing else")
    teacher: str | None = option(
        None, "a dense model whose next-token distribution is learned too; without init, its tokenizer is used")
    distill: float = option(1.0, "with teacher: weight of KL(teacher || student) in the loss")
    vocab_size: int = option(4096, "largest size of a new tokenizer; unused with init or teacher")
    context: int | None = option(None, "tokens of a sequence (default: the model's n_positions)")
    steps: int = option(2000, "steps of the whole run, over which the learning rate and alpha change")
    stop_at: int | None = option(None, "stop after this step; the run can be resumed with a later one")
    batch: int = option(16, "sequences of a step; memory does not depend on it")
    micro_batch: int = option(
        1, "sequences that a thread takes at once; the gradients of these parts of a batch are added up; a single part "
        "uses the threads of NumPy's BLAS")
    learning_rate: float = option(1e-3, "its peak, reached after `warmup` steps; it ends at a tenth of the peak")
    warmup: int = option(100, "steps to reach the peak")
    weight_decay: float = option(0.1, "AdamW's decay of the weight matrices")
    clip: float = option(1.0, "clip gradients to this norm")
    gamma: float = option(0.1, "with prune: weight of the sparsity loss; with target_kept, where it starts")
    target_kept: float | None = option(None, "with prune: steer gamma so that this share of the context is kept")
    threshold_range: tuple[float, float] | None = option(
        None, "with prune: train each sequence under a threshold drawn from this range, so that the trained model can "
        "be run at any threshold in it; gamma is for the upper end, and falls to 0 at the lower one")
    alpha_share: float = option(1.0, "with prune: share of the steps over which alpha rises from 1 to 8")
    seed: int = option(0, "seed of the initial weights and of the batches")
    eval_every: int = option(250, "steps between validations")
    eval_windows: int = option(32, "sequences of the validation text to measure")
    save_every: int = option(250, "steps between checkpoints")
    threads: int | None = option(
        None, "threads to use (default: one a processor, at most OMP_NUM_THREADS); they do not change the result")
    plot: bool = option(False, "draw metrics.png in out at each validation (needs matplotlib)")

    def __post_init__(self) -> None:
        for name in ("text", "valid"):
            object.__setattr__(self, name, settings_checks.path_list(name, getattr(self, name)))
        for name in ("out", "init", "config", "teacher"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, settings_checks.path(name, getattr(self, name)))
        if isinstance(self.threshold_range, list):  # as JSON and the command line have it
            object.__setattr__(self, "threshold_range", tuple(self.threshold_range))
        settings_checks.check_types(self)
        settings_checks.check_numbers(self)
        settings_checks.check_combinations(self)

    @property
    def end(self) -> int:
        """The step after which this run ends."""
        return min(self.steps, self.stop_at or self.steps)

    def given(self, name: str) -> bool:
        """Whether a field has another value than its default."""
        return bool(getattr(self, name) != getattr(type(self), name))

    def check_vocab_size(self, size: int, source: str) -> None:
        """Raises ValueError when `vocab_size` was given and is not the size of the tokenizer that `source` brings."""
        if self.given("vocab_size") and self.vocab_size != size:
            raise ValueError(f"vocab_size is {self.vocab_size}, but {source} has {size}; leave one out")

    def base_config(self) -> Config:
        """The config that `config` holds; without it, that of a model which a laptop trains in an hour.

        Raises ValueError for a config that cannot be used. Unknown fields are refused in a text, as they are probably
        misspelt, and ignored in a file, which another program may have written.
        """
        if self.config is None:
            return Config(n_layer=4, n_head=4, n_embd=128, n_positions=512)
        try:
            inline = self.config.lstrip().startswith("{")
            fields = json.loads(self.config if inline else Path(self.config).read_text(encoding="utf-8"))
            config = Config.from_dict(fields)
            if inline:
                _check_known(fields)
            return config
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"config {self.config}: {error}") from error

    def with_pruning(self, config: Config) -> Config:
        """`config` with the interaction weights that this run trains, and without what was measured of other weights.

        Raises ValueError when it already has some, and `prune` is not given or `int_n_embd` is another width.
        """
        config = dataclasses.replace(config, kept_thresholds=())
        if not self.prune:
            if config.int_n_embd is not None:
                raise ValueError(f"prune: {self.init or 'the config'} has interaction weights (int_n_embd "
                                 f"{config.int_n_embd}), and a run would train them: give prune too")
            return config
        if config.int_n_embd is not None and self.given("int_n_embd") and self.int_n_embd != config.int_n_embd:
            raise ValueError(f"int_n_embd is {self.int_n_embd}, but {self.init or 'the config'} has interaction "
                             f"weights already, of width {config.int_n_embd}; leave it out")
        depth = config.propagate_in_depth or self.propagate_in_depth
        delay = config.int_delay if self.int_delay is None else self.int_delay
        return dataclasses.replace(config, int_n_embd=config.int_n_embd or self.int_n_embd, propagate_in_depth=depth,
                                   int_delay=delay)

    def context_of(self, config: Config) -> int:  # T
        """The tokens of a sequence. Raises ValueError when the model has fewer positions, or only one."""
        if config.n_positions < 2:
            raise ValueError("context: the model has 1 position, and a sequence needs at least 2")
        if self.context is not None and self.context > config.n_positions:
            raise ValueError(f"context ({self.context}) must not exceed the model's n_positions ({config.n_positions})")
        return self.context or config.n_positions

    def check_same(self, stored: dict) -> None:
        """Raises ValueError when a run that began with the `stored` settings cannot resume with these.

        A setting that is not stored was added after the run began, which then had its default. Paths are compared as
        absolute ones: they may be spelt differently, and older runs stored them as they were given.
        """
        stored = {f.name: f.default for f in dataclasses.fields(self)} | stored
        for name, value in self.to_dict().items():
            if name not in MAY_CHANGE and value != (_resolved(stored[name]) if name in PATHS else stored[name]):
                raise ValueError(
                    f"{name} is {value!r}, but {self.out} was begun with {stored[name]!r}: "
                    "give that again to resume, or another out directory to start afresh"
                )

    def to_dict(self) -> dict:
        """The fields as settings.json holds them."""
        fields = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}
        return {k: _resolved(v) if k in PATHS else v for k, v in fields.items()}


def _resolved(paths: Any) -> Any:
    """Paths made absolute; standard input, a shipped model's name and a config's text stay as they are."""
    if isinstance(paths, (list, tuple)):
        return [_resolved(path) for path in paths]
    if not isinstance(paths, str) or paths.lstrip().startswith("{") or paths == inputs.STANDARD:
        return paths
    return paths if paths in shipped_models() and not Path(paths).exists() else str(Path(paths).resolve())


def _check_known(fields: dict) -> None:
    """Raises ValueError for a field that Config does not have, with the nearest that it has."""
    known = [*Config().to_dict(), *ALIASES]
    unknown = [f"{name!r} (the nearest is {difflib.get_close_matches(name, known, 1, 0)[0]!r})"
               for name in fields if name not in known]
    if unknown:
        raise ValueError(f"there is no field {', '.join(unknown)}; correct it, or leave it out")
