"""The judge: a case and a cache's answers beside the definition, in float64, token by token.

The definition is docs/specification.md: a list of live tokens a sequence and layer. Where a score is no exact number
and is nearer to the threshold than the rounding of the cache's type, the cache's own decision is taken, and counted.
"""

import math
from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from dcp_ref.runtime.precision import stored
from dcp_ref.testing.cases import FORK, NEW, RELEASE, RESTORE, STEP, Case, calls
from dcp_ref.testing.definition import Tokens, after, attention, decisions, empty

FLOOR = 32  # units of rounding of the largest value: attention of this error is right whatever the reference's error


class Answers(NamedTuple):
    """What a cache did with a case. `error`: (number of calls that went well, message) where one did not."""

    out: np.ndarray  # [L, N, C]
    dropped: np.ndarray  # int32 [n, 3]: (layer, row of the case, position)
    live: np.ndarray  # int32 [n, 4]: (call, sequence, layer, position), of every sequence after every call
    error: tuple[int, str] | None = None


class Failure(NamedTuple):
    """The first difference. Masks: live tokens of the sequence in this layer, a row for each token so far."""

    text: str
    call: int
    sequence: int = -1
    layer: int = -1
    i: int = -1
    j: int = -1
    score: float = math.nan
    ulps: float = math.nan  # how far the score is from the threshold, in units of float32's last place
    expected: tuple[Any, ...] = ()
    found: tuple[Any, ...] = ()
    want: Any = None  # the drops [n] of the row, its attention [C], or the live positions [n] after the call
    row: int = -1  # of the case; -1 where the live positions differ


class Verdict(NamedTuple):
    """What a case showed: counts, the largest errors of attention (own, reference's), close decisions, the failure."""

    counts: Counter
    errors: tuple[float, float]
    close: list[str]
    failure: Failure | None


class _Different(Exception):
    """Ends the judge's walk with a Failure."""


class _Judge:
    def __init__(self, case: Case, answers: Answers, outputs: str, page: int, dtype: str) -> None:
        self.case, self.answers, self.outputs, self.page, self.dtype = case, answers, outputs, page, np.dtype(dtype)
        self.counts, self.close, self.errors = Counter({"examples": 1}), list[str](), [0.0, 0.0]
        n_head = case.config.n_head
        self.k, self.v = (np.stack([stored(layer, case.kv, n_head) for layer in x]).astype(float)
                          for x in (case.k, case.v))
        self.dropped, self.live = _grouped(answers.dropped, 2), _grouped(answers.live, 3)
        self.sequences: dict[int, list[Tokens]] = {}

    def walk(self) -> None:
        config, rank = self.case.config, self.case.q_int.shape[-1]
        for n, call in enumerate(calls(self.case)):
            if self.answers.error and n == self.answers.error[0]:
                raise _Different(Failure(self.answers.error[1], n))
            if call.kind == NEW:
                self.sequences[call.sequence] = [empty(config.n_embd, rank)] * config.n_layer
            elif call.kind in (FORK, RESTORE):
                self.sequences[call.child] = list(self.sequences[call.sequence])
            elif call.kind == RELEASE:
                del self.sequences[call.sequence]
            for layer in range(config.n_layer if call.kind == STEP else 0):
                row = call.first
                for sequence, count in call.parts:
                    for _ in range(count):
                        self.token(n, sequence, layer, row)
                        row += 1
            self.counts["steps"] += call.kind == STEP
            self.compare_live(n)

    def token(self, call: int, sequence: int, layer: int, row: int) -> None:
        """The next token of a sequence in a layer: decisions, the new list, attention."""
        case, tokens = self.case, self.sequences[sequence][layer]
        i, position = tokens.seen, tokens.position
        deep = case.config.propagate_in_depth and layer > 0
        above = self.sequences[sequence][layer - 1].masks[i] if deep else None
        s, gone, close = decisions(case, tokens, layer, row, above, np.finfo(self.dtype).eps)
        found = self.dropped.get((layer, row), np.zeros(0, int))
        gone = np.where(close, np.isin(position, found), gone)
        self.note(layer, i, position[close], s[close])
        new = after(tokens, gone, self.k[layer, row], self.v[layer, row], case.k_int[layer, row], case.pinned[row])
        self.sequences[sequence][layer] = new
        want = np.sort(position[gone])
        at: dict[str, Any] = {"sequence": sequence, "layer": layer, "i": i, "row": row, "want": want,
                              "expected": new.masks}
        if not np.array_equal(want, found):
            j = int(np.setxor1d(want, found)[0]) if len(np.setxor1d(want, found)) else int(found[0])
            score = float(s[position == j][0]) if j in position else math.nan
            masks = (*tokens.masks, np.append(np.setdiff1d(position, found), i))
            text = _what(j, position, want, found, score, case.threshold)
            text += ": the layer before dropped it" * (above is not None and j in want and j not in above)
            raise _Different(Failure(text, call, j=j, score=score,
                                     ulps=_ulps(score, case.threshold), found=masks, **at))
        live = len(new.position)
        self.counts["drops"] += len(want)
        self.counts["reused slots"] += live <= tokens.most  # as slots are taken: the lowest free one
        self.counts["pages crossed"] += live > self.page and (live - 1) % self.page == 0
        if self.outputs == "all" or (self.outputs == "quiet" and not len(want)):
            self.compare_out(new, layer, row, {**at, "call": call, "found": new.masks})

    def compare_out(self, tokens: Tokens, layer: int, row: int, at: dict[str, Any]) -> None:
        config, q, got = self.case.config, self.case.q[layer, row], self.answers.out[layer, row].astype(float)
        scale = config.attention_scale(layer)
        want = attention(q.astype(float), tokens.k, tokens.v, config.n_head, scale)
        q, k, v = (x.astype(self.dtype) for x in (q, tokens.k, tokens.v))
        rounded = attention(q, k, v, config.n_head, scale)
        own, reference = np.abs(got - want).max(), np.abs(rounded - want).max()
        floor = FLOOR * np.finfo(self.dtype).eps * np.abs(tokens.v).max()
        self.errors = [max(pair) for pair in zip(self.errors, (own, reference), strict=True)]
        if not own <= 2 * reference + floor:
            at["want"] = want
            raise _Different(Failure(
                f"attention of token {at['i']} is off by {own:.3g}, and the reference in {self.dtype} by "
                f"{reference:.3g}: at most {2 * reference + floor:.3g} is right", **at))

    def compare_live(self, call: int) -> None:
        for sequence, layers in self.sequences.items():
            for layer, tokens in enumerate(layers):
                found = self.live.get((call, sequence, layer), np.zeros(0, int))
                if not np.array_equal(found, tokens.position):
                    differing = np.setxor1d(found, tokens.position)
                    j = int(differing[0]) if len(differing) else int(found[0])
                    raise _Different(Failure(
                        f"sequence {sequence} must hold {_some(tokens.position, j)}, and says {_some(found, j)}", call,
                        sequence, layer, tokens.seen - 1, j, expected=tokens.masks,
                        found=(*tokens.masks[:-1], found), want=tokens.position))

    def note(self, layer: int, i: int, position: np.ndarray, s: np.ndarray) -> None:
        """Count decisions that rounding may take, and keep a line for each."""
        self.counts["skipped decisions"] += len(position)
        for j, score in zip(position, s, strict=True):
            self.close.append(f"{self.case.check}: layer {layer}, token {i} about {j}: s = {score:.9g}, "
                              f"{_ulps(score, self.case.threshold):.2g} ulp from {self.case.threshold:g}")


def judge(case: Case, answers: Answers, outputs: str = "all", page: int = 4, dtype: str = "float32") -> Verdict:
    """Compare a cache's answers with the definition, up to the first difference."""
    judging, failure = _Judge(case, answers, outputs, page, dtype), None
    try:
        judging.walk()
    except _Different as different:
        failure = different.args[0]
    return Verdict(judging.counts, (judging.errors[0], judging.errors[1]), judging.close, failure)


def _grouped(rows: np.ndarray, width: int) -> dict[tuple[int, ...], np.ndarray]:
    """Positions, ascending, by the `width` columns before them."""
    found: dict[tuple[int, ...], list[int]] = {}
    for row in rows.tolist():
        found.setdefault(tuple(row[:width]), []).append(row[width])
    return {key: np.sort(np.array(positions)) for key, positions in found.items()}


def _some(positions: np.ndarray, j: int) -> str:
    """The positions; of many only those around j."""
    if len(positions) <= 24:
        return str(positions.tolist())
    near = positions[np.argsort(np.abs(positions - j), kind="stable")[:8]]
    return f"{len(positions)} tokens, {np.sort(near).tolist()} among them"


def _ulps(score: float, threshold: float) -> float:
    return abs(score - threshold) / float(np.spacing(np.float32(max(abs(score), abs(threshold), 2.0**-100))))


def _what(j: int, position, want, found, score: float, threshold: float) -> str:
    why = "" if math.isnan(score) and j not in position else f" (s = {score:.9g}, threshold {threshold:g})"
    if j in want and j not in found:
        return f"token {j} must leave and was kept{why}"
    if j in position:
        return f"token {j} must stay and was dropped{why}" if j not in want else f"token {j} was reported twice"
    return f"token {j} was reported as dropped and was not live"
