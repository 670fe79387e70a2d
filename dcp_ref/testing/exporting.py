"""Caches in other languages: cases written to a directory. importing.py judges the answers that are put there.

For each case-NNNN there are a .safetensors and a .bin file with the same arrays. The .bin file is for programs
without a reader of safetensors: for each array of CASE_ARRAYS, in order, an int32 with the number of its elements, then
the elements, int32 or float32, little-endian, the last axis fastest. Answers are answer-NNNN.safetensors or .bin, in
the same form, with the arrays of ANSWER_ARRAYS. manifest.json says which cases there are.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from dcp_ref.checkpoints.weights import load
from dcp_ref.policies import learned
from dcp_ref.runtime.precision import STORAGES
from dcp_ref.testing import shipped
from dcp_ref.testing.cases import Case
from dcp_ref.testing.check_list import CHECKS, FEWEST
from dcp_ref.testing.drawing import draw
from dcp_ref.testing.own import OwnNumpy
from dcp_ref.testing.suite import SPECIFICATION

SIZES = ("n_layer", "n_embd", "n_head", "int_n_embd", "int_delay", "propagate_in_depth", "n_positions")  # then kv, N
CASE_ARRAYS = {"sizes": np.int32, "ops": np.int32, "beta": np.float32, "q": np.float32, "k": np.float32,
               "v": np.float32, "q_int": np.float32, "k_int": np.float32,
               "pinned": np.int32}  # beta: the threshold first, then one a layer
ANSWER_ARRAYS = {"out": np.float32, "dropped": np.int32, "live": np.int32}
MANIFEST, PAGE = "manifest.json", 4
DEFAULT = ("decode", "prompts", "ragged", "fork", "release", "threshold", "int_delay", "propagate_in_depth")


def export_cases(directory: str | Path, examples: int = 20, seed: int = 0, supports: tuple[str, ...] = DEFAULT) -> int:
    """Write cases of every check that a cache with such `supports` runs; returns how many.

    Raises ValueError when the directory has a manifest already, or for policies, which the files cannot say; OSError.
    """
    if policies := sorted({"policies", "budget"} & set(supports)):
        raise ValueError(f"supports: exported cases have the learned rule alone: leave {' and '.join(policies)} out")
    directory, listed = Path(directory), list[dict[str, Any]]()
    if (directory / MANIFEST).exists():
        raise ValueError(f"{directory} has a {MANIFEST} already: name a new directory")
    directory.mkdir(parents=True, exist_ok=True)
    for n, case in enumerate(_cases(examples, seed, frozenset(supports))):
        name, tensors = f"case-{n:04}", _tensors(case)
        save_file(tensors, directory / f"{name}.safetensors", metadata={"check": case.check})
        (directory / f"{name}.bin").write_bytes(_flat(tensors))
        digests = {end: hashlib.sha256((directory / f"{name}.{end}").read_bytes()).hexdigest()
                   for end in ("safetensors", "bin")}
        listed.append({"name": name, "check": case.check, "kv": case.kv, "exact": case.exact, "sha256": digests})
    fields = {"specification": SPECIFICATION, "license": "MIT", "seed": seed, "sizes": [*SIZES, "kv", "rows"],
              "case_arrays": list(CASE_ARRAYS), "answer_arrays": list(ANSWER_ARRAYS), "cases": listed}
    (directory / MANIFEST).write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")
    return len(listed)


def _cases(examples: int, seed: int, supports: frozenset[str]) -> list[Case]:
    rng, cases = np.random.default_rng(seed), list[Case]()
    for check in CHECKS:
        if check.level in (2, 3) and check.name != "memory" and set(check.needs) <= supports:
            cases += [draw(lambda low, high: int(rng.integers(low, high + 1)), check.name, check.focus, supports, PAGE)
                      for _ in range(examples if check.share else min(examples, FEWEST))]
    model = load("tiny")
    counts = shipped.feeds(supports, len(shipped.token_ids(model)))
    return [*cases, shipped.decoded(model, OwnNumpy.make(model.config, learned), counts)[0]]


def _tensors(case: Case) -> dict[str, np.ndarray]:
    sizes = [int(getattr(case.config, name)) for name in SIZES] + [STORAGES.index(case.kv), case.q.shape[1]]
    given = {"sizes": sizes, "ops": case.ops, "beta": [case.threshold, *case.beta]}
    return {name: np.ascontiguousarray(given.get(name, getattr(case, name, None)), dtype)
            for name, dtype in CASE_ARRAYS.items()}


def _flat(tensors: dict[str, np.ndarray]) -> bytes:
    parts = [(np.int32(x.size).tobytes(), x.tobytes()) for x in tensors.values()]
    return b"".join(part for pair in parts for part in pair)
