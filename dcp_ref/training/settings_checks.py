"""What TrainSettings refuses: each function raises ValueError, naming the field."""

import dataclasses
import math
from os import PathLike
from typing import TYPE_CHECKING, Any, get_args

from dcp_ref.checkpoints import inputs

if TYPE_CHECKING:
    from dcp_ref.training.settings import TrainSettings

POSITIVE = ("int_n_embd", "steps", "batch", "micro_batch", "learning_rate", "clip", "distill", "alpha_share",
            "eval_every", "eval_windows", "save_every", "threads", "stop_at")
NOT_NEGATIVE = ("warmup", "weight_decay", "gamma", "seed", "int_delay")
OF_PRUNING = ("int_n_embd", "propagate_in_depth", "int_delay", "only_interaction", "gamma", "target_kept",
              "threshold_range", "alpha_share")


def path_list(name: str, paths: Any) -> tuple[str, ...]:
    """The field's paths as texts."""
    if not isinstance(paths, (list, tuple)):
        given = "one string" if isinstance(paths, str) else repr(paths)
        raise ValueError(f"{name} must be a list of files, not {given}")
    return tuple(path(name, each) for each in paths)


def path(name: str, value: Any) -> str:
    """The field's path as a text."""
    if not isinstance(value, (str, PathLike)):
        raise ValueError(f"{name} must be a path, not {value!r}")
    return str(value)


def check_types(settings: "TrainSettings") -> None:
    """An int passes for a float, but True does not pass for 1."""
    for f in dataclasses.fields(settings):
        value, kinds = getattr(settings, f.name), get_args(f.type) or (f.type,)  # (int, NoneType) for int | None
        if f.name in ("text", "valid", "threshold_range"):  # path_list and check_range check these
            continue
        fits = isinstance(value, (*kinds, int) if float in kinds else kinds)
        if not fits or (isinstance(value, bool) and bool not in kinds):
            raise ValueError(f"{f.name} must be of type {kinds[0].__name__}, not {value!r}")


def check_numbers(settings: "TrainSettings") -> None:
    for name in POSITIVE:
        value = getattr(settings, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be a positive number, not {value!r}")
    for name in NOT_NEGATIVE:
        value = getattr(settings, name)
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"{name} must be a number of 0 or more, not {value!r}")
    if settings.alpha_share > 1:
        raise ValueError(f"alpha_share must be at most 1 (all steps), not {settings.alpha_share!r}")
    if settings.target_kept is not None and not 0 < settings.target_kept < 1:
        raise ValueError(f"target_kept must be between 0 and 1, not {settings.target_kept!r}")
    check_range(settings.threshold_range)
    if settings.vocab_size < 257:
        raise ValueError(f"vocab_size must be at least 257 (256 bytes and end of text), not {settings.vocab_size}")
    if settings.context is not None and settings.context < 2:
        raise ValueError(f"context must be at least 2, not {settings.context}")


def check_range(ends: Any) -> None:
    """Of thresholds: two numbers, the lower one first, or None."""
    numbers = isinstance(ends, tuple) and len(ends) == 2 and all(type(end) in (int, float) for end in ends)
    if ends is not None and not (numbers and -math.inf < ends[0] < ends[1] < math.inf):
        raise ValueError(f"threshold_range must be two numbers, the lower one first, not {ends!r}")


def check_combinations(settings: "TrainSettings") -> None:
    """Fields that are needed, and fields that contradict each other or mean nothing together."""
    s = settings
    inputs.check((*s.text, *s.valid))
    if not s.text:
        raise ValueError("text: no file given")
    if not s.out:  # Path("") would be the working directory
        raise ValueError("out: the path is empty; give the directory to make")
    if s.init is not None and s.config is not None:
        raise ValueError("config: the model in init has its own; give one of the two")
    for name in OF_PRUNING:
        if s.given(name) and not s.prune:
            raise ValueError(f"{name}: nothing is dropped without prune; give both")
    if s.only_interaction and s.init is None:
        raise ValueError("only_interaction: without init all other weights would stay random; give both")
    if s.target_kept is not None and s.gamma == 0:
        raise ValueError("gamma: with target_kept it is where gamma starts, and must be positive, not 0")
    if s.target_kept is not None and s.threshold_range is not None:
        raise ValueError("target_kept: a range of thresholds keeps many shares; leave out one of the two")
    if s.threshold_range is not None and s.micro_batch != 1:
        raise ValueError(f"micro_batch must be 1, not {s.micro_batch}: each sequence has a threshold of its own")
    if s.distill != 1 and s.teacher is None:
        raise ValueError("distill: there is nothing to learn from without teacher; give both")
    if s.batch % s.micro_batch:
        raise ValueError(f"batch ({s.batch}) must be a multiple of micro_batch ({s.micro_batch})")
