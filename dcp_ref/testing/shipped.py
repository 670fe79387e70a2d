"""Level 4: the trained model that is shipped decodes through an author's cache, beside its dense forward.

A trained model has what random ones have not: tokens whose loss would show many steps later.
"""

from types import SimpleNamespace
from typing import Any

import numpy as np

from dcp_ref import policies
from dcp_ref.checkpoints.weights import Model, load
from dcp_ref.model import forward
from dcp_ref.runtime import kernels
from dcp_ref.runtime.decoder import Decoder
from dcp_ref.runtime.lock import ForkAwareLock
from dcp_ref.testing.cases import FEED, NEW, STEP, Case
from dcp_ref.testing.check_list import Check
from dcp_ref.testing.failures import describe
from dcp_ref.testing.judging import FLOOR, Answers, Failure, judge
from dcp_ref.testing.own import OwnNumpy
from dcp_ref.testing.report import Result
from dcp_ref.testing.running import Author, as_numpy, integers

TEXT = ("The old man looked at the sea, and the sea looked back at him. He had been a sailor, and his father had been "
        "one before him; but the boy would not go.")
PROMPT = 24  # tokens in the first step, where a step may have several


class _Recorder:
    """What Decoder needs of a cache: an author's one behind it, with what goes in and what comes out kept."""

    def __init__(self, cache: Any, config: Any) -> None:
        self.cache, self.config, self.policy = cache, config, policies.learned
        self.lock, self.handle, self.call, self.first = ForkAwareLock("cache"), cache.new(), 0, 0
        self.inputs = [{name: list[np.ndarray]() for name in ("q", "k", "v", "q_int", "k_int", "out")}
                       for _ in range(config.n_layer)]
        self.beta = np.zeros(config.n_layer, np.float32)
        self.dropped, self.live = list[tuple[int, ...]](), list[tuple[int, ...]]()

    def step(self, layer: int, batch: Any, q, k, v, q_int, k_int, beta, inherited=None):
        arrays = dict(zip(("q", "k", "v", "q_int", "k_int"), map(np.array, (q, k, v, q_int, k_int)), strict=True))
        if inherited is None:
            inherited = np.zeros((0, 2), np.int32)
        out, dropped = self.cache.step(layer, [(self.handle, len(q))], *arrays.values(), beta, inherited)
        out, dropped = as_numpy(out), integers("dropped", dropped, 2)
        for name, x in (arrays | {"out": out}).items():
            self.inputs[layer][name].append(x)
        self.beta[layer] = beta
        self.dropped += [(layer, self.first + int(row), int(position)) for row, position in dropped]
        return np.asarray(out, np.float32), dropped.astype(np.int32)

    def feed(self, decoder: Decoder, ids: np.ndarray) -> np.ndarray:
        logits, _ = decoder.walk(SimpleNamespace(starts=[self.first], counts=[len(ids)]), ids, np.arange(len(ids)))
        self.first, self.call = self.first + len(ids), self.call + 1
        for layer in range(self.config.n_layer):
            positions = integers("live", self.cache.live(self.handle, layer), 1)
            self.live += [(self.call, 0, layer, int(position)) for position in positions]
        return logits

    def stacked(self, name: str) -> np.ndarray:
        return np.stack([np.concatenate(layer[name]) for layer in self.inputs]).astype(np.float32)

    def answers(self) -> Answers:
        return Answers(self.stacked("out"), np.array(self.dropped, np.int32).reshape(-1, 3),
                       np.array(self.live, np.int32).reshape(-1, 4))


def decoded(model: Model, cache: Any, counts: list[int], name: str = "tiny") -> tuple[Case, Answers, np.ndarray]:
    """TEXT through the cache, so many tokens a step: the case that it was, its answers and the logits [T, V]."""
    recorder, ids = _Recorder(cache, model.config), token_ids(model)
    decoder = Decoder(model, kernels, recorder, "float32")
    logits = [recorder.feed(decoder, part) for part in np.split(ids, np.cumsum(counts)[:-1])]
    ops = [(NEW, 0, 0), *(op for n in counts for op in ((STEP, 1, 0), (FEED, 0, n)))]
    arrays: dict[str, Any] = {name: recorder.stacked(name) for name in ("q", "k", "v", "q_int", "k_int")}
    case = Case(name, model.config, policies.learned, 0.0, "float32", False, tuple(ops), **arrays, beta=recorder.beta,
                pinned=np.zeros(len(ids), bool))
    return case, recorder.answers(), np.concatenate(logits)


def token_ids(model: Model) -> np.ndarray:
    """TEXT as the model reads it."""
    assert model.tokenizer is not None
    return np.array(model.tokenizer.encode(TEXT), np.int64)


def feeds(supports: frozenset[str], tokens: int) -> list[int]:
    """How many tokens each step has: a prompt and single ones, or single ones alone."""
    first = PROMPT if "prompts" in supports else 1
    return [first] + [1] * (tokens - first)


def check(author: Author, check: Check) -> Result:
    """Decisions one by one, then logits: error(own, float64) <= 2 error(KVCache, float64) + floor."""
    model = load("tiny")
    counts = feeds(author.supports, len(token_ids(model)))
    case, answers, logits = decoded(model, author.make(model.config, policies.learned), counts)
    verdict = judge(case, answers, "all", author.page, author.dtype)
    failure = verdict.failure or _logits(model, logits, counts, author.dtype)
    message = describe(check, case, failure) if failure else ""
    return Result(check.name, check.level, "failed" if failure else "passed", verdict.counts, verdict.errors,
                  tuple(verdict.close), message)


def _logits(model: Model, logits: np.ndarray, counts: list[int], dtype: str) -> Failure | None:
    params = {name: x.astype(float) for name, x in model.params.items()}
    exact = forward(params, token_ids(model)[None], model.config).logits[0]
    reference = decoded(model, OwnNumpy.make(model.config, policies.learned), counts)[2]
    own, other = np.abs(logits - exact).max(), np.abs(reference - exact).max()
    most = 2 * other + FLOOR * np.finfo(dtype).eps * np.abs(exact).max()
    if own <= most:
        return None
    return Failure(f"logits are off by {own:.3g}, those of KVCache by {other:.3g}: at most {most:.3g} is right", -1)
