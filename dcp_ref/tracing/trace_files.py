"""A trace in a safetensors file: its arrays, and in the header all else as JSON. Nothing is ever unpickled."""

import dataclasses
import json
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dcp_ref.checkpoints.replacing import replacing
from dcp_ref.config import Config, check_threshold
from dcp_ref.policies import Policy
from dcp_ref.tracing.as_json import FORMAT, VERSION
from dcp_ref.tracing.drops import REASONS, Drops, rows_that_dropped
from dcp_ref.tracing.replay import Interaction
from dcp_ref.tracing.scored import Parts

if TYPE_CHECKING:
    from dcp_ref.tracing.record import Trace

PLAIN = {"prompt_tokens": int, "threshold": float, "backend": str, "scores": bool, "weights": str, "kv": str,
         "name": str}  # fields that JSON can hold


def save_trace(trace: "Trace", path: str | PathLike[str]) -> None:
    """Write a file for `load`; an older one is replaced whole, or not at all. Raises OSError, and ValueError as
    `trace.drops` does."""
    header = {name: getattr(trace, name) for name in PLAIN} | {
        "config": dataclasses.asdict(trace.config),
        "policy": vars(trace.policy) | {"rule": trace.policy.rule is not None},
        "texts": list(trace.texts), "pinned": list(trace.pinned), "weights_hash": trace.weights_hash}
    arrays: dict[str, np.ndarray] = {"ids": trace.ids, "lifetime": trace.lifetime}
    arrays |= {"score": trace.drops.score, "margin": trace.drops.margin, "reason": trace.drops.reason}
    if trace.scores:
        assert trace.parts is not None
        q, k, beta = trace.scored
        arrays |= {"q": q, "k": k, "beta": beta, "query_parts": trace.parts.query, "key_parts": trace.parts.key}
    metadata = {"format": FORMAT, "version": str(VERSION), "trace": json.dumps(header)}
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    write(path, save(whole, metadata=metadata))


def write(path: str | PathLike[str], data: bytes) -> None:
    """Write a file; an older one is replaced whole, or not at all. Raises OSError."""
    path = Path(path)
    with replacing(path.parent) as temporary:
        (temporary / path.name).write_bytes(data)


def load(path: str | PathLike[str]) -> "Trace":
    """The trace in a file that `Trace.save` wrote; `with_model` gives it its model.

    Raises ValueError naming the file, when it cannot be read, is no trace, of a later version, or damaged.
    """
    from dcp_ref.tracing.record import Trace

    header, arrays = _read(Path(path))
    try:
        config, policy = Config.from_dict(header["config"]), _policy(header["policy"])
        ids, lifetime, texts = arrays["ids"], arrays["lifetime"], tuple(header["texts"])
        trace = Trace(config, ids, texts, policy=policy, lifetime=lifetime, hash_in_file=header["weights_hash"],
                      pinned=tuple(header.get("pinned", ())), **{name: header[name] for name in PLAIN})
        _check(trace)
        layer, position, by = rows_that_dropped(lifetime)
        known: dict[str, Any] = {"drops": Drops(layer, position, by, *(arrays[n] for n in Drops._fields[3:]))}
        if trace.scores:
            known["interaction"] = Interaction(*(arrays[name] for name in Interaction._fields))
            known["parts"] = Parts(arrays["query_parts"], arrays["key_parts"])
        _check_shapes(trace, known)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(f"{path}: damaged ({type(error).__name__}: {error}); trace the text again") from None
    vars(trace).update(known)  # as if they had been worked out
    return trace


def _policy(fields: dict[str, Any]) -> Policy:
    """The policy of a file. A file holds no functions: a rule of one's own that was read from one can only be named."""
    def rule(*_: Any) -> None:
        raise ValueError(f"policy {fields['name']}: this trace was read from a file, which holds no rule of one's own: "
                         "trace the text again")

    return Policy(**fields | {"rule": rule if fields.get("rule") else None})


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The header and the arrays. Raises ValueError."""
    try:
        with path.open("rb"):  # first: safe_open hides the system's error
            pass
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"{path}: no trace, but another safetensors file; give one that Trace.save wrote")
            if metadata.get("version") != str(VERSION):
                raise ValueError(f"{path}: version {metadata.get('version')} of the format, and this is {VERSION}: "
                                 "update dcp-ref, or trace the text again")
            arrays = _arrays(path, file)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from None
    except SafetensorError as error:
        raise ValueError(f"{path}: no trace, or damaged ({error}); give a file that Trace.save wrote") from None
    try:
        return json.loads(metadata["trace"]), arrays
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: damaged (its header: {error}); trace the text again") from None


def _arrays(path: Path, file: Any) -> dict[str, np.ndarray]:
    """All arrays of an open file. Raises ValueError."""
    try:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (ValueError, TypeError, AttributeError) as error:  # NumPy's: a shape or a type that it does not have
        raise ValueError(f"{path}: damaged ({error}); trace the text again") from None


def _check(trace: "Trace") -> None:
    """Raises ValueError where ids and lifetimes are impossible."""
    ids, lifetime, T = trace.ids, trace.lifetime, len(trace.ids)
    _is("ids", ids, np.int64, (max(T, 1),))
    _is("lifetime", lifetime, np.int32, (trace.config.n_layer, T))
    if ids.min() < 0 or ids.max() >= trace.config.vocab_size or len(trace.texts) != T:
        raise ValueError("ids and texts do not fit each other or the config")
    for name, kind in PLAIN.items():
        if not isinstance(getattr(trace, name), kind):
            raise ValueError(f"{name} is no {kind.__name__}")
    check_threshold(trace.threshold, trace.policy.learned)
    trace.policy.check(trace.config)
    if not all(isinstance(text, str) for text in (*trace.texts, trace.policy.name, trace.weights_hash)):
        raise ValueError("texts or names are no strings")
    if not 0 < trace.prompt_tokens <= T or (trace.scores and not trace.policy.learned):
        raise ValueError("prompt_tokens or scores are impossible")
    if any(type(j) is not int or not 0 <= j < T or (trace.left[:, j] < T).any() for j in trace.pinned):
        raise ValueError("pinned is impossible")
    if (lifetime < 1).any() or (trace.left > T).any():
        raise ValueError("lifetime is impossible")


def _check_shapes(trace: "Trace", known: dict[str, Any]) -> None:
    (L, T), r = trace.lifetime.shape, trace.config.int_n_embd
    D = len(known["drops"].layer)
    for name, dtype in (("score", np.float32), ("margin", np.float32), ("reason", np.int8)):
        _is(name, getattr(known["drops"], name), dtype, (D,))
    if not np.isin(known["drops"].reason, range(len(REASONS))).all():
        raise ValueError("reason is impossible")
    if trace.scores:
        for name, x, shape in zip("qkb", known["interaction"], ((L, T, r), (L, T, r), (L,)), strict=True):
            _is(name, x, np.float32, shape)
        for x in known["parts"]:
            _is("parts", x, np.float32, (D, 1 + 2 * L))


def _is(name: str, x: np.ndarray, dtype: Any, shape: tuple) -> None:
    if x.dtype != dtype or x.shape != shape:
        raise ValueError(f"{name} is {x.dtype} {list(x.shape)}, not {np.dtype(dtype)} {list(shape)}")
