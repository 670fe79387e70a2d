"""The data of a page: checked, and made as small as the page allows.

Floats of lists are written with the nine digits that give a float32 back. Where a trace is still too large, its arrays
go to half precision, and then the queries and keys are left out: a field `note` says so, and the page shows it.
"""

import base64
import json
import math

import numpy as np

FORMAT, VERSION = "dcp_ref.trace", 1
MOST = 5_600_000  # bytes of a trace's JSON, so that a page of one trace stays below 6 MB
HALVED = "scores are worked out from half-precision numbers: the third digit may differ"
LEFT_OUT = "the scores of pairs are left out, as the page would be too large"
NO_PARTS = "the scores of pairs and their parts are left out, as the page would be too large"


def check(trace: dict, name: str) -> None:
    """Raises ValueError, naming the trace and the field, when it is not what `Trace.to_dict` gives."""
    if not isinstance(trace, dict) or trace.get("format") != FORMAT or trace.get("version") != VERSION:
        raise ValueError(f"{name} must be a trace of version {VERSION}, as Trace.to_dict() gives it")
    try:
        T, L, drops = len(trace["ids"]), trace["n_layer"], trace["drops"]
        lengths = {"texts": len(trace["texts"]), "kinds": len(trace["kinds"])}
        lengths |= {f"{field}[{layer}]": len(trace[field][layer]) for field in ("lifetime", "live_counts")
                    for layer in range(L)}
        D = len(drops["layer"])
        sizes = {field: len(drops[field]) for field in ("position", "dropped_by", "score", "margin", "reason")}
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{name} lacks a field ({error}); give what Trace.to_dict() gives") from error
    wrong = [field for field, n in lengths.items() if n != T]
    wrong += [f"drops.{field}" for field, n in sizes.items() if n != D]
    if T == 0 or wrong:
        raise ValueError(f"{name}: {', '.join(wrong) or 'ids'} must have one entry for each "
                         f"{'token' if T == 0 or wrong[0] in lengths else 'drop'}; give what Trace.to_dict() gives")


def compact(trace: dict, most: int = MOST) -> dict:
    """The trace, with as much of it as fits into `most` bytes of JSON."""
    trace = trace | {name: _short(trace.get(name)) for name in ("drops", "counterfactuals", "everything")}
    trace["drops"] = {name: array for name, array in trace["drops"].items() if name != "margin"}  # score - threshold
    if _size(trace) <= most:
        return trace
    half = {**trace, "interaction": _halved(trace.get("interaction"), ("q", "k")),
            "parts": _halved(trace.get("parts"), ("query", "key")), "note": HALVED}
    without = {**half, "interaction": None, "note": LEFT_OUT}
    return next((each for each in (half, without) if _size(each) <= most), {**without, "parts": None, "note": NO_PARTS})


def _size(trace: dict) -> int:
    return len(json.dumps(trace, separators=(",", ":")))


def _short(value):
    """The value with its floats rounded to the nine digits of a float32; NaN, which JSON lacks, is None."""
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else None
    if isinstance(value, list):
        return [_short(each) for each in value]
    return {name: _short(each) for name, each in value.items()} if isinstance(value, dict) else value


def _halved(arrays: dict | None, names: tuple[str, str]) -> dict | None:
    """Two base64 arrays of float32 as float16. None where a number is too large for it."""
    if arrays is None or arrays.get("dtype") == "float16":
        return arrays
    floats = [np.frombuffer(base64.b64decode(arrays[name]), "<f4") for name in names]
    if any(np.abs(each).max(initial=0) > np.finfo(np.float16).max for each in floats):
        return None
    halves = {name: base64.b64encode(each.astype("<f2").tobytes()).decode()
              for name, each in zip(names, floats, strict=True)}
    return {**arrays, **halves, "dtype": "float16"}
