"""Checkpoint files: find a model, read and write its JSON and its tensors. Nothing is ever unpickled."""

import errno
import json
import mmap
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dcp_ref.checkpoints import hub
from dcp_ref.checkpoints.replacing import current
from dcp_ref.checkpoints.replacing import replacing as replacing  # re-exported for those who write files

SHIPPED = Path(__file__).parents[1] / "models"
PREFIX = "transformer."
HEAD = "lm_head.weight"  # the only name without the prefix
BUFFER = re.compile(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias|bias_int)")  # causal masks, in some files
SHARD = re.compile(r"[\w.-]+\.safetensors", re.ASCII)  # no slash: an index must not lead out of its directory
STORED = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # safetensors' names; NumPy has no bfloat16


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the file, the tensor and what to do."""


def find_model(path_or_name: str | os.PathLike[str]) -> Path:
    """The directory at this path, or that of the shipped model, or of the model in Hugging Face's cache, of this name.

    Raises CheckpointError.
    """
    directory = Path(path_or_name)
    if path_or_name == "":  # Path("") would be the working directory
        raise CheckpointError(f"the path is empty; give a directory, or one of the shipped models {shipped_models()}")
    mode = _mode(directory)
    if mode is not None and stat.S_ISDIR(mode):
        return directory
    if mode is not None:
        raise CheckpointError(f"{directory}: a file; give the directory that holds it")
    if isinstance(path_or_name, str) and path_or_name in shipped_models():  # "./tiny" and Path("tiny") are paths
        return SHIPPED / path_or_name
    name = path_or_name if isinstance(path_or_name, str) else ""
    if (cached := hub.in_cache(name)) is not None:
        return cached
    raise CheckpointError(f"{os.fspath(path_or_name)}: no such directory, nor the bare name of a shipped model (there "
                          f"are {shipped_models()}){hub.advice(name)}")


def _mode(path: Path) -> int | None:
    """The mode of the file at a path, None where there is none. Raises CheckpointError for any other failure."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # ValueError: a NUL in a name
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    """The system's own message: the file may be whole, so the advice is not to download it again."""
    hint = ": this disk cannot map files into memory, copy the directory to another" * (
        getattr(error, "errno", None) == errno.ENODEV)
    return CheckpointError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}){hint}")


def shipped_models() -> list[str]:
    """The names of the models in the package."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError."""
    file = current(file)
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file}: missing; a checkpoint directory needs it") from None
    except OSError as error:
        raise _unreadable(file, error) from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not readable as JSON ({error}); download it again") from None
    if not isinstance(fields, dict):
        raise CheckpointError(f"{file}: must hold a JSON object, not a {type(fields).__name__}; download it again")
    return fields


def read_tensors(directory: Path) -> tuple[dict[str, np.ndarray], Callable[[str], str]]:
    """All tensors of a checkpoint without its buffers, named without `transformer.`; and where(name).

    Aligned tensors of 32 or 64 bits are read-only views of the mapped files. Others are copies, 16 bits widened to 32.
    where(name) is the file that a tensor is in, or should be in. Raises CheckpointError.
    """
    files = _weight_files(directory)
    tensors: dict[str, np.ndarray] = {}
    sources: dict[str, Path] = {}
    for file in files:
        for full_name, array in _read_file(file).items():
            name = full_name.removeprefix(PREFIX)
            if name in tensors:
                raise CheckpointError(f"{file}: {full_name} is there twice (also in {sources[name]}); remove one")
            tensors[name], sources[name] = array, file
    main = files[0] if len(files) == 1 else directory / "model.safetensors.index.json"
    return tensors, lambda name: str(sources.get(name, main))


def _weight_files(directory: Path) -> list[Path]:
    """model.safetensors, or else the shards that model.safetensors.index.json lists."""
    whole, index = (current(directory / name) for name in ("model.safetensors", "model.safetensors.index.json"))
    if _mode(whole) is not None:
        return [whole]
    if _mode(index) is None:
        raise CheckpointError(f"{whole}: missing; {_instead(directory)}")
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{index}: has no weight_map; download it again")
    for tensor, shard in shards.items():
        if not isinstance(shard, str) or not SHARD.fullmatch(shard):
            raise CheckpointError(f"{index}: {tensor}: {shard!r} is not the plain name of a .safetensors file")
        if _mode(current(directory / shard)) is None:
            raise CheckpointError(f"{index}: {tensor}: its file {shard} is missing; download it")
    return [current(directory / shard) for shard in sorted(set(shards.values()))]


def _instead(directory: Path) -> str:
    pickles = [file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in sorted(directory.glob(pattern))]
    if not pickles:
        return "download it"
    return (f"{pickles[0]} is a pickle, which can run code, so it is never read. If you trust it, convert it with "
            f"transformers: GPT2LMHeadModel.from_pretrained({str(directory)!r}).save_pretrained(NEW_DIRECTORY)")


def _read_file(file: Path) -> dict[str, np.ndarray]:
    try:
        raw = np.asarray(np.memmap(file, np.uint8, "r"))  # first: safe_open hides the system's error
        with safe_open(file, framework="numpy"):  # checks header, offsets and length, but cannot read bfloat16
            pass
    except OSError as error:
        raise _unreadable(file, error) from None
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{file}: not a whole safetensors file ({error}); download it again") from None
    start = 8 + int.from_bytes(raw[:8].tobytes(), "little")
    tensors = {}
    for name, entry in json.loads(raw[8:start].tobytes()).items():
        if name == "__metadata__" or BUFFER.fullmatch(name):
            continue
        if entry["dtype"] not in STORED:
            raise CheckpointError(f"{file}: {name} is stored as {entry['dtype']}; store it as one of {list(STORED)}")
        first, end = entry["data_offsets"]
        stored = raw[start + first : start + end].view(STORED[entry["dtype"]]).reshape(entry["shape"])
        usable = stored.dtype in (np.float32, np.float64) and stored.flags.aligned
        tensors[name] = stored if usable else _widened(stored)
        forget(stored)
    return tensors


def _widened(stored: np.ndarray) -> np.ndarray:
    """A copy in float32, or float64 if it was that. uint16 stands for bfloat16, the upper half of a float32."""
    if stored.dtype != np.uint16:
        return np.array(stored, np.float64 if stored.itemsize == 8 else np.float32)
    wide = np.empty(stored.shape, np.float32)
    np.left_shift(stored, 16, out=wide.view(np.uint32), dtype=np.uint32)
    return wide


def forget(array: np.ndarray) -> None:
    """Free the memory behind `array` if it is a view of a read-only mapped file; other arrays are left alone.

    The values are read from the file again when they are next used.
    """
    owner: Any = array
    while isinstance(owner, np.ndarray) and not isinstance(owner, np.memmap):
        owner = owner.base
    if isinstance(owner, np.memmap) and owner.mode == "r" and array.size and hasattr(mmap, "MADV_DONTNEED"):
        first, end = byte_bounds(array)
        first -= first % mmap.PAGESIZE  # madvise wants whole pages
        mapping: mmap.mmap = owner._mmap  # type: ignore[attr-defined]
        mapping.madvise(mmap.MADV_DONTNEED, first - np.frombuffer(mapping, np.uint8).ctypes.data, end - first)


def write_tensors(file: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write a safetensors file, with the names that transformers expects. Raises OSError."""
    file.touch()
    mode = file.stat().st_mode
    named = {name if name == HEAD else PREFIX + name: np.ascontiguousarray(array) for name, array in tensors.items()}
    try:
        save_file(named, file, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(f"{file}: cannot be written ({error})") from None
    file.chmod(mode)  # save_file makes it unreadable for other users
