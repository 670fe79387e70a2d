"""What an author sees of a failure: where, why, a picture, and files: the arrays, and a script that runs alone."""

import inspect
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from dcp_ref.testing.cases import FORK, NEW, RELEASE, RESTORE, STEP, Case, calls, options
from dcp_ref.testing.check_list import Check
from dcp_ref.testing.judging import Answers, Failure

ROWS, COLUMNS = 6, 24  # of the picture


def describe(check: Check, case: Case, failure: Failure) -> str:
    """The check, the fault that it stands for, the first difference and its picture."""
    lines = [f"{check.name}: {check.fault}", f"  {failure.text}"]
    if failure.layer >= 0:
        where = f"call {failure.call}, sequence {failure.sequence}, layer {failure.layer}, token i = {failure.i}"
        lines.append(f"  {where}" + f", token j = {failure.j}" * (failure.j >= 0))
        if not math.isnan(failure.ulps):
            lines.append(f"  s = {failure.score:.9g}, threshold = {case.threshold:g}: {failure.ulps:.3g} units in the "
                         "last place apart")
        lines += [f"  {line}" for line in picture(failure)] if failure.i >= 0 else []
    elif failure.call >= 0:
        lines.append(f"  call {failure.call} of the history")
    lines.append(f"  docs/specification.md, points {check.points}")
    return "\n".join(lines)


def picture(failure: Failure) -> list[str]:
    """Both masks of the last tokens up to i: █ is live, × has just left, · is gone."""
    i = failure.i
    first = max(0, min(failure.j if failure.j >= 0 else i, i - COLUMNS // 2) - 2)
    width = min(i + 1, first + COLUMNS) - first
    lines = [f"{'':11}{'expected':{max(width, 8)}}  found"]
    for row in range(max(0, i - ROWS + 1), i + 1):
        masks = [_mask(masks, row, first, width) for masks in (failure.expected, failure.found)]
        lines.append(f"token {row:<4} {masks[0]:{max(width, 8)}}  {masks[1]}".rstrip())
    if first <= failure.j < first + width:
        lines.append(f"{'':11}{' ' * (failure.j - first)}^ token {failure.j}")
    return lines


def _mask(masks: tuple[Any, ...], row: int, first: int, width: int) -> str:
    now, before = masks[row], masks[row - 1] if row else []
    marks = ["█" if j in now else "×" if j in before else "·" for j in range(first, min(row + 1, first + width))]
    return "".join(marks) + f" and {[int(j) for j in now if j > row]}" * any(j > row for j in now)


def save(directory: Path, check: Check, case: Case, answers: Answers, failure: Failure, cls: Any) -> list[Path]:
    """Write CHECK.safetensors and CHECK.py. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    arrays = directory / f"{check.name}.safetensors"
    tensors = {name: np.ascontiguousarray(getattr(case, name)) for name in ("q", "k", "v", "q_int", "k_int", "beta",
                                                                               "pinned")}
    tensors |= {"ops": np.array(case.ops, np.int32), "answer.out": answers.out, "answer.dropped": answers.dropped,
                "answer.live": answers.live}
    if isinstance(failure.want, np.ndarray):
        tensors["want"] = np.ascontiguousarray(failure.want)
    save_file(tensors, arrays, metadata={"check": check.name, "kv": case.kv, "threshold": repr(case.threshold)})
    program = directory / f"{check.name}.py"
    program.write_text(script(check, case, failure, cls), encoding="utf-8")
    return [arrays, program]


def script(check: Check, case: Case, failure: Failure, cls: Any) -> str:
    """The history up to the failure as a program without this package's tests: it fails as the check did."""
    fields = {name: getattr(case.config, name) for name in (
        "vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "int_n_embd", "propagate_in_depth", "int_delay")}
    config = ", ".join(f"{name}={value!r}" for name, value in fields.items())
    given = "".join(f", {name}={value!r}" for name, value in options(case).items())
    lines = [f'"""{check.name}: {check.fault}"""', "", "import sys", "", "import numpy as np", "",
             "from dcp_ref import Config, policies", "", *_import(cls), "", "nan, inf = np.nan, np.inf",
             f"config = Config({config})",
             f"cache = {cls.__name__}.make(config, policies.parse({case.policy.name!r}){given})", ""]
    learned = case.policy.rank(case.config) > 0
    for n, call in enumerate(calls(case)):
        if n > failure.call >= 0:
            break
        last = n == failure.call
        if call.kind == NEW:
            lines.append(f"s{call.sequence} = cache.new()")
        elif call.kind == FORK:
            lines.append(f"s{call.child} = cache.fork(s{call.sequence})")
        elif call.kind == RESTORE:
            lines.append(f"s{call.child} = cache.restore(cache.save(s{call.sequence}))")
        elif call.kind == RELEASE:
            lines.append(f"cache.release(s{call.sequence})")
        for layer in range(case.config.n_layer if call.kind == STEP else 0):
            lines += _step(case, call, layer, learned)
            if last and failure.row >= 0 and layer == failure.layer:
                return "\n".join([*lines, *_row(failure, call.first), ""])
        lines += ["cache.poison()"] * callable(getattr(cls, "poison", None))
    if failure.row < 0 and failure.want is not None:
        lines += [f"found = np.asarray(cache.live(s{failure.sequence}, {failure.layer})).tolist()",
                  f"assert found == {failure.want.tolist()}, found"]
    return "\n".join([*lines, ""])


def _step(case: Case, call: Any, layer: int, learned: bool) -> list[str]:
    rows = slice(call.first, call.first + call.rows)
    names = ("q", "k", "v", *(("q_int", "k_int") if learned else ()))
    arrays = [f"{name} = np.array({_literal(getattr(case, name)[layer, rows])}, np.float32)" for name in names]
    batch = ", ".join(f"(s{sequence}, {count})" for sequence, count in call.parts)
    deep = case.config.propagate_in_depth and layer
    inherited = "np.array(dropped, np.int32).reshape(-1, 2)" if deep else "np.zeros((0, 2), np.int32)"
    interaction = "q_int, k_int" if learned else "None, None"
    pinned = f", pinned=np.array({case.pinned[rows].tolist()})" if case.pinned.any() else ""
    return [*arrays, f"out, dropped = cache.step({layer}, [{batch}], q, k, v, {interaction}, "
                     f"{float(case.beta[layer])!r}, {inherited}{pinned})"]


def _row(failure: Failure, first: int) -> list[str]:
    row = failure.row - first
    if failure.want.dtype.kind == "f":
        want = ", ".join(f"{x:.9g}" for x in failure.want)
        return [f"error = np.abs(np.asarray(out)[{row}] - np.array([{want}])).max()",
                'assert error < 1e-5, f"attention is off by {error}"']
    return [f"found = sorted(int(j) for row, j in np.asarray(dropped).reshape(-1, 2).tolist() if row == {row})",
            f'assert found == {failure.want.tolist()}, f"row {row} must drop {failure.want.tolist()}, not {{found}}"']


def _import(cls: Any) -> list[str]:
    try:
        file = Path(inspect.getsourcefile(cls) or "")
    except TypeError:
        file = Path()
    if cls.__module__ == "__main__" or "<locals>" in cls.__qualname__:
        return [f"# put the class {cls.__name__} here, or import it"]
    depth = cls.__module__.count(".")
    path = os.path.abspath(file.parents[depth]) if file.name else "."
    return [f"sys.path.insert(0, {path!r})", f"from {cls.__module__} import {cls.__name__}"]


def _literal(x: np.ndarray) -> str:
    if x.ndim == 1:
        return "[" + ", ".join(str(number).removesuffix(".0") for number in x) + "]"
    return "[" + ", ".join(map(_literal, x)) + "]"
