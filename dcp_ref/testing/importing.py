"""Answers of a cache in another language, put into a directory of exported cases, and judged."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from dcp_ref import policies
from dcp_ref.config import Config
from dcp_ref.runtime.precision import STORAGES
from dcp_ref.testing.cases import Case
from dcp_ref.testing.check_list import ALL, BY_NAME, Check
from dcp_ref.testing.exporting import ANSWER_ARRAYS, MANIFEST, PAGE, SIZES
from dcp_ref.testing.failures import describe
from dcp_ref.testing.judging import Answers, Failure, judge
from dcp_ref.testing.report import Report, Result
from dcp_ref.testing.suite import SPECIFICATION


def import_answers(directory: str | Path) -> Report:
    """Judge the answers in a directory that `export_cases` wrote; a case without an answer has failed.

    Raises ValueError when there is no manifest of this specification, or a case has changed since; OSError.
    """
    directory = Path(directory)
    try:
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        listed, seed, version = manifest["cases"], manifest["seed"], manifest["specification"]
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{directory / MANIFEST} is no manifest of exported cases ({error}): write one with --export"
                         ) from None
    if version.split(".")[0] != SPECIFICATION.split(".")[0]:
        raise ValueError(f"{directory} has cases of specification {version}, and this is {SPECIFICATION}: export anew")
    cases = [_case(directory, entry) for entry in listed]
    found: dict[str, Result] = {}
    for entry, case in zip(listed, cases, strict=True):
        check = BY_NAME[entry["check"]]
        new = _judged(directory / entry["name"].replace("case", "answer"), check, case)
        found[check.name] = _both(found[check.name], new) if check.name in found else new
    report = Report(str(directory), tuple(found.values()), seed, version)
    if report.ok and not all(report.counts[name] for name in ALL):
        raise ValueError(f"{directory}: so few cases show nothing: export anew, with more --examples")
    return report


def _case(directory: Path, entry: dict[str, Any]) -> Case:
    """A case as it is in its file. Raises ValueError when it has changed."""
    for end, digest in entry["sha256"].items():
        file = directory / f"{entry['name']}.{end}"
        if hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise ValueError(f"{file} is not the case that was exported: export anew")
    x = load_file(directory / f"{entry['name']}.safetensors")
    *sizes, kv, _ = (int(size) for size in x["sizes"])
    fields: dict[str, Any] = dict(zip(SIZES, sizes, strict=True))
    fields["propagate_in_depth"] = bool(fields["propagate_in_depth"])
    config = Config(vocab_size=1, eos_token_id=None, **fields)
    ops = tuple((int(a), int(b), int(c)) for a, b, c in x["ops"])
    arrays: dict[str, Any] = {name: x[name] for name in ("q", "k", "v", "q_int", "k_int")}
    return Case(entry["check"], config, policies.learned, float(x["beta"][0]), STORAGES[kv], entry["exact"], ops,
                **arrays, beta=x["beta"][1:], pinned=x["pinned"].astype(bool))


def _judged(path: Path, check: Check, case: Case) -> Result:
    """The result of one case, from the answer's file: `path` with one of two endings."""
    try:
        verdict = judge(case, _answers(path, case), check.focus.outputs if check.level < 4 else "all", PAGE)
    except ValueError as error:
        message = describe(check, case, Failure(str(error), -1))
        return Result(check.name, check.level, "failed", Counter(examples=1), message=message)
    failed = verdict.failure is not None
    message = f"{describe(check, case, verdict.failure)}\n  in {path.name}" if verdict.failure is not None else ""
    return Result(check.name, check.level, "failed" if failed else "passed", verdict.counts, verdict.errors,
                  tuple(verdict.close), message)


def _answers(path: Path, case: Case) -> Answers:
    """The arrays of an answer. Raises ValueError naming the file."""
    packed, flat = path.with_suffix(".safetensors"), path.with_suffix(".bin")
    try:
        found = load_file(packed) if packed.exists() else _read_flat(flat)
        out = found["out"].reshape(case.q.shape).astype(np.float32)
        dropped, live = found["dropped"].reshape(-1, 3), found["live"].reshape(-1, 4)
        return Answers(out, dropped.astype(np.int32), live.astype(np.int32))
    except FileNotFoundError:
        raise ValueError(f"there is neither {packed.name} nor {flat.name}") from None
    except (ValueError, KeyError, SafetensorError) as error:
        raise ValueError(f"{path.name} does not hold {', '.join(ANSWER_ARRAYS)} for this case: {error}") from None


def _read_flat(file: Path) -> dict[str, np.ndarray]:
    raw, at, found = file.read_bytes(), 0, {}
    for name, dtype in ANSWER_ARRAYS.items():
        if len(raw) < at + 4:
            raise ValueError(f"it ends before {name}")
        n = int(np.frombuffer(raw, np.int32, 1, at)[0])
        if n < 0 or len(raw) < at + 4 + 4 * n:
            raise ValueError(f"it ends within {name}, which should have {n} elements")
        found[name] = np.frombuffer(raw, dtype, n, at + 4)
        at += 4 + 4 * n
    return found


def _both(old: Result, new: Result) -> Result:
    """Two cases of one check: the first that failed is shown."""
    shown = new if old.ok else old
    return shown._replace(counts=old.counts + new.counts, close=(*old.close, *new.close),
                          errors=(max(old.errors[0], new.errors[0]), max(old.errors[1], new.errors[1])))
