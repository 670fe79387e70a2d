"""A sequence of an engine in a safetensors file: its live tokens, and what they belong to. Nothing is ever unpickled.

Tensors, layer by layer, as `fields` lists them (`layer.0.position`, `layer.0.k`, ...); tokens ascend by position. The
header holds the model, policy and storage as JSON, and a SHA-256 of all else. Bits are promised within one backend and
one version of the package, so a file belongs to these too.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from dcp_ref.checkpoints.replacing import current, replacing
from dcp_ref.config import Config
from dcp_ref.policies import Policy
from dcp_ref.runtime.live_tokens import Tokens

FORMAT, VERSION = "dcp_ref cache", "1"
AGAIN = "read the text again"

Layer = dict[str, np.ndarray]  # the fields of one layer's N live tokens: [N, ...]
Fields = Callable[[Any, int], dict[str, tuple[str, tuple[int, ...]]]]


class Saved(NamedTuple):
    """The live tokens of one sequence."""

    seen: int  # tokens fed so far
    layers: list[Layer]


def fields(cache: Any, n: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The dtype and shape of each field of n tokens of a KVCache's layer; native/saving.py has a NativeCache's."""
    empty = Tokens.empty(cache.config.n_embd, cache.policy.rank(cache.config))
    return {name: (str(x.dtype), (n, *x.shape[1:])) for name, x in zip(Tokens._fields[1:], empty[1:], strict=True)}


def export(cache: Any, sequence: int) -> Saved:
    """The live tokens of a sequence. Raises ValueError when it is unknown."""
    [layers] = cache.batch([sequence], [0]).layers
    return Saved(layers[0].seen, [dict(zip(Tokens._fields[1:], tokens[1:], strict=True)) for tokens in layers])


def restore(cache: Any, saved: Saved) -> int:
    """A handle of a new sequence with these tokens, which `read` has checked. Raises CacheFull past the bound."""
    handle = cache.new_sequence()
    try:
        batch = cache.batch([handle], [0])
        draft = batch._replace(layers=[[Tokens(saved.seen, **layer) for layer in saved.layers]], draft=True)
        cache.check_room(batch, draft)
        cache.commit(batch, draft)
        return handle
    except BaseException:  # an interrupt too: nobody else would release it
        cache.release(handle)
        raise


def owner(config: Config, policy: Policy, weights: str, **others: Any) -> dict[str, Any]:
    """What saved tokens belong to, as JSON gives it back; `weights` is a digest. A function stands for its name."""
    from dcp_ref import __version__

    rule = None if policy.rule is None else getattr(policy.rule, "__qualname__", type(policy.rule).__qualname__)
    found = {"version": __version__, **others, "config": dataclasses.asdict(config),
             "policy": dataclasses.asdict(dataclasses.replace(policy, rule=None)) | {"rule": rule}, "weights": weights}
    return json.loads(json.dumps(found))


def write(path: str | PathLike[str], saved: Saved, owner: dict[str, Any]) -> None:
    """Write a file for `read`; an older one is replaced whole, or not at all. `owner` is what the tokens belong to.

    Raises OSError.
    """
    path = Path(path)
    tensors = {f"layer.{n}.{name}": np.ascontiguousarray(x)
               for n, layer in enumerate(saved.layers) for name, x in layer.items()}
    header = json.dumps({**owner, "seen": saved.seen}, sort_keys=True)
    metadata = {"format": FORMAT, "version": VERSION, "cache": header, "sha256": _digest(header, tensors)}
    data = save(tensors, metadata=metadata)
    with replacing(path.parent) as temporary:
        (temporary / path.name).write_bytes(data)


def read(path: str | PathLike[str], owner: dict[str, Any], cache: Any, fields: Fields) -> Saved:
    """The tokens that `write` wrote, if they belong to this owner and have the cache's fields.

    Raises ValueError naming the file and what is wrong with it.
    """
    header, tensors = _read(Path(path))
    for name, ours in owner.items():
        _compare(path, name, header.get(name), ours)
    try:
        seen = header["seen"]
        if type(seen) is not int or not 0 <= seen <= cache.config.n_positions:
            raise ValueError(f"seen is {seen!r}")
        layers = [_layer(tensors, n, seen, cache, fields) for n in range(cache.config.n_layer)]
        if tensors:
            raise ValueError(f"tensors that are too many: {sorted(tensors)}")
        pins = [layer["position"][layer["pinned"]] for layer in layers]
        if any(not np.array_equal(pinned, pins[0]) for pinned in pins):
            raise ValueError("a pinned token is not in all layers")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: damaged ({type(error).__name__}: {error}); {AGAIN}") from None
    return Saved(seen, layers)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header and the tensors. Raises ValueError."""
    try:
        data = current(path).read_bytes()
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
        if metadata.get("format") != FORMAT:
            raise ValueError("give a file that Engine.save wrote")
        if metadata.get("version") != VERSION:
            raise ValueError(f"version {metadata.get('version')} of the format, and this is {VERSION}")
        tensors = load(data)
        if metadata["sha256"] != _digest(metadata["cache"], tensors):
            raise ValueError("its bytes have changed since it was written")
        header = json.loads(metadata["cache"])
        if not isinstance(header, dict):
            raise TypeError("its header is no object")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: no saved cache, or damaged ({error}); {AGAIN}") from None
    return header, tensors


def _digest(header: str, tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(header.encode())
    for name, x in sorted(tensors.items()):
        digest.update(f"{name} {x.dtype} {x.shape}".encode())
        digest.update(np.ascontiguousarray(x).data)
    return digest.hexdigest()


def _compare(path: str | PathLike[str], name: str, theirs: Any, ours: Any) -> None:
    """Raises ValueError, naming what differs: a field of `config` and `policy`, too."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in dict.fromkeys([*ours, *theirs]):
            _compare(path, f"{name}.{key}", theirs.get(key), ours.get(key))
    elif theirs != ours or type(theirs) is not type(ours):
        raise ValueError(f"{path}: belongs to another engine: {name} is {theirs!r} there, and {ours!r} here; {AGAIN}")


def _layer(tensors: dict[str, np.ndarray], n: int, seen: int, cache: Any, fields: Fields) -> Layer:
    """Takes one layer's fields from the tensors, checked. Raises KeyError or ValueError."""
    N = tensors[f"layer.{n}.position"].size
    layer = {}
    for name, (dtype, shape) in fields(cache, N).items():
        x = layer[name] = tensors.pop(f"layer.{n}.{name}")
        if x.dtype != dtype or x.shape != shape:
            raise ValueError(f"layer.{n}.{name} is {x.dtype} {list(x.shape)}, not {np.dtype(dtype)} {list(shape)}")
    position = layer["position"]
    if N == 0 and seen == 0:
        return layer
    if N == 0 or position[0] < 0 or position[-1] != seen - 1 or (np.diff(position) < 1).any():
        raise ValueError(f"layer.{n}.position must ascend from 0 or more to {seen - 1}, the last token")
    if "slot" in layer:
        slot, end = layer["slot"], -(-N // cache.page_slots) * cache.page_slots
        if slot.min() < 0 or slot.max() >= end or len(np.unique(slot)) < N:
            raise ValueError(f"layer.{n}.slot must be different slots below {end}")
    return layer
