"""An author's cache: what it declares, and how a case is fed to it."""

from typing import Any

import numpy as np

from dcp_ref.config import Config
from dcp_ref.policies import Policy
from dcp_ref.testing.cases import FORK, NEW, RELEASE, RESTORE, Call, Case, calls, options
from dcp_ref.testing.judging import Answers

FEATURES = {  # what `supports` may name
    "decode": "a step with one token of a sequence",
    "prompts": "several tokens of a sequence in one step",
    "ragged": "several sequences in one step, each with its own number of tokens",
    "fork": "fork(handle) -> handle: a sequence of its own with the same tokens",
    "release": "release(handle): the sequence is no longer used",
    "threshold": "make(..., threshold=t): a token stays only if s > t",
    "int_delay": "config.int_delay > 0: a token is safe for this number of steps",
    "propagate_in_depth": "config.propagate_in_depth: a layer drops what the layer before dropped (`inherited`)",
    "float16": 'make(..., kv="float16"): keys and values are stored in 16 bits',
    "int8": 'make(..., kv="int8"): keys and values are stored in 8 bits, with a scale for each token and head',
    "policies": "make(config, policy) with policies by position: windows, strides, sinks",
    "budget": "make(config, policy) with policy.budget: the most judged tokens that stay",
    "pins": "step(..., pinned=None): bool [N] marks tokens that are never dropped; given only where there are some",
    "save": "save(handle) -> state, restore(state) -> handle: a sequence of its own with the same tokens",
}
METHODS = {"decode": ("make", "new", "step", "live"), "fork": ("fork",), "release": ("release",),
           "save": ("save", "restore")}


class Author:
    """A class of an author's, checked: what it supports, expects to fail, and how its numbers are rounded.

    Raises ValueError naming what cannot be used.
    """

    def __init__(self, cls: Any) -> None:
        self.cls, self.name = cls, getattr(cls, "__name__", type(cls).__name__)
        given = getattr(cls, "supports", {"decode"} if hasattr(cls, "step") else ())
        self.supports = frozenset([given] if isinstance(given, str) else given)
        self.expected = dict(getattr(cls, "expected_failures", {}))
        self.page, self.dtype = getattr(cls, "page_slots", None) or 4, getattr(cls, "dtype", "float32")
        if unknown := sorted(self.supports - FEATURES.keys()):
            raise ValueError(f"{self.name}.supports: {', '.join(unknown)} is not one of {', '.join(FEATURES)}")
        if self.dtype not in ("float32", "float16", "float64"):
            raise ValueError(f"{self.name}.dtype is the float type of its arithmetic: give float32, float16 or "
                             f"float64, not {self.dtype!r}")
        if isinstance(self.page, bool) or not isinstance(self.page, int) or self.page < 1:
            raise ValueError(f"{self.name}.page_slots is the number of tokens in a page: give a positive integer or "
                             f"None, not {self.page!r}")
        for feature in self.supports & METHODS.keys():
            if missing := [method for method in METHODS[feature] if not callable(getattr(cls, method, None))]:
                raise ValueError(f"{self.name} supports {feature}, and has no {' and no '.join(missing)}: add it, or "
                                 f"take {feature} out of `supports`")
        if "decode" not in self.supports and not any(hasattr(cls, name) for name in ("alpha_sigmoid", "mask")):
            raise ValueError(f"{self.name} offers nothing to check: give it make, new, step and live and "
                             'supports = {"decode"}, or the functions mask or alpha_sigmoid')

    def make(self, config: Config, policy: Policy, **given: Any) -> Any:
        return self.cls.make(config, policy, **given)

    def run(self, case: Case) -> Answers:
        """Feed the case to a new cache; an exception ends it, and becomes part of the answers."""
        try:
            walk = Walk(self, case)
        except Exception as raised:  # whatever an author's code may raise
            none = np.zeros((0, 4), np.int32)
            error = f"make raised {type(raised).__name__}: {raised}"
            return Answers(np.zeros_like(case.q), none[:, 1:], none, (0, error))
        return walk.answers()


class Walk:
    """A new cache, and a case's calls to it."""

    def __init__(self, author: Author, case: Case) -> None:
        self.case, self.handles = case, dict[int, Any]()
        self.out = np.zeros_like(case.q)
        self.dropped, self.live = list[tuple[int, ...]](), list[tuple[int, ...]]()
        self.cache = author.make(case.config, case.policy, **options(case))

    def answers(self) -> Answers:
        error, n = None, 0
        try:
            for n, call in enumerate(calls(self.case)):
                self.call(call)
                for sequence, handle in self.handles.items():
                    for layer in range(self.case.config.n_layer):
                        positions = integers("live", self.cache.live(handle, layer), 1)
                        self.live += [(n, sequence, layer, int(position)) for position in positions]
        except Exception as raised:  # whatever an author's code may raise
            error = (n, f"raised {type(raised).__name__}: {raised}")
        return Answers(self.out, _table(self.dropped, 3), _table(self.live, 4), error)

    def call(self, call: Call) -> None:
        if call.kind == NEW:
            self.handles[call.sequence] = self.cache.new()
        elif call.kind == FORK:
            self.handles[call.child] = self.cache.fork(self.handles[call.sequence])
        elif call.kind == RESTORE:
            self.handles[call.child] = self.cache.restore(self.cache.save(self.handles[call.sequence]))
        elif call.kind == RELEASE:
            self.cache.release(self.handles.pop(call.sequence))
        else:
            self.step(call)
        if callable(getattr(self.cache, "poison", None)):
            self.cache.poison()

    def step(self, call: Call) -> None:
        case, gone = self.case, np.zeros((0, 2), np.int32)
        rows = slice(call.first, call.first + call.rows)
        batch = [(self.handles[sequence], count) for sequence, count in call.parts]
        rank = case.policy.rank(case.config)
        pins = {"pinned": case.pinned[rows].copy()} if case.pinned.any() else {}
        for layer in range(case.config.n_layer):
            q, k, v, q_int, k_int = (x[layer, rows].copy() for x in (case.q, case.k, case.v, case.q_int, case.k_int))
            with np.errstate(all="ignore"):  # scores that are NaN or infinite are part of the test
                out, dropped = self.cache.step(
                    layer, list(batch), q, k, v, q_int if rank else None, k_int if rank else None,
                    float(case.beta[layer]), gone if case.config.propagate_in_depth else gone[:0], **pins)
            out, dropped = as_numpy(out), integers("dropped", dropped, 2)
            if out.shape != q.shape:
                raise ValueError(f"step must return `out` of shape {list(q.shape)}, not {list(out.shape)}")
            if len(dropped) and not 0 <= dropped[:, 0].min() <= dropped[:, 0].max() < call.rows:
                raise ValueError(f"`dropped` names rows {dropped[:, 0].tolist()}, and the step has {call.rows}")
            self.out[layer, rows] = out
            self.dropped += [(layer, call.first + int(row), int(position)) for row, position in dropped]
            gone = np.ascontiguousarray(dropped[np.lexsort(dropped.T[::-1])], np.int32)


def as_numpy(x: Any) -> np.ndarray:
    """An array of any library: by DLPack, or as NumPy sees it."""
    if hasattr(x, "detach"):  # torch: without its gradient, from any device
        x = x.detach().cpu()
    if not hasattr(x, "__array__") and hasattr(x, "__dlpack__"):
        x = np.from_dlpack(x)
    return np.asarray(x)


def integers(name: str, x: Any, ndim: int) -> np.ndarray:
    """Positions [n], or pairs [n, 2]. Raises ValueError naming the array."""
    x = as_numpy(x)
    if x.size == 0:
        return np.zeros((0, 2)[:ndim] if ndim == 2 else 0, int)
    if x.ndim != ndim or x.dtype.kind not in "iu" or (ndim == 2 and x.shape[1] != 2):
        raise ValueError(f"`{name}` must be integers {['[n]', '[n, 2]: (row, position)'][ndim - 1]}, not {x.dtype} "
                         f"{list(x.shape)}")
    return x.astype(int)


def _table(rows: list[tuple[int, ...]], width: int) -> np.ndarray:
    return np.array(rows, np.int32).reshape(-1, width)
