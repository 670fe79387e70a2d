"""The files of a training run. Each is replaced whole, so a run that is killed at any moment can resume.

    settings.json                          written first, to claim the directory; also the teacher's fingerprint
    tokenizer.json, tokenizer_config.json, train.npy, valid.npy   written once, before the first step
    checkpoint.safetensors                 step, config, parameters and optimizer state: what a run resumes from
    metrics.jsonl                          one row a step; rows after the checkpoint are removed on resuming
    metrics.png                            the picture of the metrics, with the setting `plot`
    config.json, model.safetensors         the model, for dcp_ref.load; replaced together with the checkpoint
"""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dcp_ref.checkpoints import files
from dcp_ref.checkpoints.replacing import current
from dcp_ref.checkpoints.weights import INTERACTION
from dcp_ref.config import Config
from dcp_ref.training.optimizer import Params
from dcp_ref.training.steering import Steering

try:
    import fcntl
except ImportError:  # not Unix
    fcntl = None  # type: ignore[assignment]

CHECKPOINT, SETTINGS, METRICS, PLOT = "checkpoint.safetensors", "settings.json", "metrics.jsonl", "metrics.png"
FILES = (CHECKPOINT, METRICS, PLOT, "tokenizer.json", "tokenizer_config.json", "train.npy", "valid.npy", "config.json",
         "model.safetensors")


class TrainingError(RuntimeError):
    """A run had to stop; its directory still holds the last checkpoint."""


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Inside, no other run may use `directory`. It is made if it is missing, and removed again if it stays empty.

    The system locks the directory itself, until the process ends at the latest; there is no lock file. On a system or
    disk without locks, nothing is locked. Raises ValueError while another run has the lock.
    """
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    handle = os.open(directory, os.O_RDONLY)
    try:
        _lock(handle, directory)
        try:
            yield
        finally:
            for path in made:
                with contextlib.suppress(OSError):  # not empty: keep it
                    path.rmdir()
    finally:
        os.close(handle)


def _lock(handle: int, directory: Path) -> None:
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"out: another run is training into {directory}: wait for its end, or give another out "
                         "directory") from None
    except OSError:  # this disk has no locks, as some network disks
        pass


@dataclass
class State:
    """All that a step changes. `step` counts the steps taken; `m` and `v` have the names of the trained parameters."""

    step: int
    config: Config
    params: Params
    m: Params
    v: Params
    steering: Steering = field(default_factory=Steering)

    @classmethod
    def fresh(cls, config: Config, params: Params, only_interaction: bool = False) -> "State":
        """The state before the first step: float32 copies of `params`, and moments of 0."""
        own = {name: np.array(p, np.float32) for name, p in params.items()}
        trained = {name: p for name, p in own.items() if INTERACTION.fullmatch(name) or not only_interaction}
        m, v = ({name: np.zeros_like(p) for name, p in trained.items()} for _ in range(2))
        return cls(0, config, own, m, v)


def save_state(directory: Path, state: State) -> None:
    """Write checkpoint.safetensors."""
    groups = {"params": state.params, "m": state.m, "v": state.v}
    tensors = {f"{group}/{name}": array for group, arrays in groups.items() for name, array in arrays.items()}
    rest = {"step": state.step, "config": state.config.to_dict(), "steering": state.steering}
    metadata = {"state": json.dumps(rest)}  # one key: several would be written in a random order
    with files.replacing(directory) as temporary:
        (temporary / CHECKPOINT).write_bytes(save(tensors, metadata))


def load_state(directory: Path) -> State:
    """The state in checkpoint.safetensors. Raises TrainingError when it cannot be read."""
    groups: dict[str, Params] = {"params": {}, "m": {}, "v": {}}
    try:
        with safe_open(current(directory / CHECKPOINT), framework="numpy") as file:
            stored = json.loads(file.metadata()["state"])
            for key in file.keys():  # noqa: SIM118 - not a dict
                group, name = key.split("/")
                groups[group][name] = file.get_tensor(key)
        config = Config.from_dict(stored["config"])
        return State(stored["step"], config, **groups, steering=Steering(*stored.get("steering", ())))
    except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
        raise TrainingError(f"{directory / CHECKPOINT} cannot be read ({error}): start afresh elsewhere") from error


def load_settings(directory: Path) -> dict:
    """The fields in settings.json. Raises TrainingError when no run wrote it so."""
    path = current(directory / SETTINGS)
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(stored, dict) or "text" not in stored:
            raise ValueError("no settings of a run")
        return stored
    except (ValueError, RecursionError) as error:
        raise TrainingError(f"{path} is damaged ({error}): remove {directory}, or begin in another out") from error


def load_tokens(path: Path) -> np.ndarray:
    """The token ids in train.npy or valid.npy, mapped from the file. Raises TrainingError when it cannot be read."""
    try:
        tokens = np.load(current(path), mmap_mode="r")
        if tokens.ndim != 1 or tokens.dtype.kind != "u":
            raise ValueError("no list of token ids")
        return tokens
    except (OSError, EOFError, ValueError) as error:
        raise TrainingError(f"{path} cannot be read ({error}): start afresh elsewhere") from error


def append_metrics(directory: Path, row: dict) -> None:
    """Add a row to metrics.jsonl."""
    with (directory / METRICS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())  # on the disk before the checkpoint of its step


def load_metrics(directory: Path) -> list[dict]:
    """The rows of metrics.jsonl; none if it is missing. Raises TrainingError naming a line that is not a row."""
    path = current(directory / METRICS)
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            if line.endswith(b"\n"):  # else the run was killed while it wrote the line
                rows.append(json.loads(line))
                if not all(isinstance(rows[-1][name], (int, float)) for name in ("step", "seconds", "cross_entropy")):
                    raise ValueError("no row of a run")
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise TrainingError(f"{path}, line {number}, cannot be read ({error}): correct it, or move the file away "
                                "to go on without it") from error
    return rows


def truncate_metrics(directory: Path, step: int) -> float:
    """Keep only the rows of the first `step` steps. Returns the seconds that they took."""
    rows = [row for row in load_metrics(directory) if row["step"] <= step]
    with files.replacing(directory) as temporary:
        (temporary / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return rows[-1]["seconds"] if rows else 0.0
