"""Why a layer kept or dropped a token: its score, taken apart in three ways, each of which adds up to it."""

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dcp_ref.runtime.checks import check_layer
from dcp_ref.tracing.drops import scores_of_pairs
from dcp_ref.tracing.replay import projected
from dcp_ref.tracing.scored import part_names

if TYPE_CHECKING:
    from dcp_ref.tracing.record import Trace

MOST = 8  # terms, and scores of the history, that `str` shows


class Why(NamedTuple):
    """The score s[i, j] of a layer, and what it is made of.

    `terms`[d] = q_int[d] k_int[d] / sqrt(r): terms.sum() + beta = score, to float32 rounding.
    `history`: s[j+1 .. i, j], the scores that token j got from each token until i.
    `parts` names the parts of the residual stream, which is a plain sum before ln_1: embedding, position, each earlier
    layer's attention and mlp. Once a token's mean and scale in ln_1 are fixed, a score is linear in each of its two
    hidden states. `query_parts` are what each part of token i's gave, `key_parts` of token j's; the last is ln_1's
    bias. query_parts.sum() = key_parts.sum() = score - beta, to float32 rounding.
    `dropped_by`: the token that dropped j in this layer, None where it was held to the end. `pinned`: whether j was
    pinned, so that no score could drop it.
    """

    layer: int
    i: int
    j: int
    texts: tuple[str, str]  # of token i and of token j
    score: float
    threshold: float
    margin: float
    beta: float
    terms: np.ndarray  # float32 [r]
    history: np.ndarray  # float32 [i - j]
    parts: tuple[str, ...]
    query_parts: np.ndarray  # float64 [3 + 2 layer]
    key_parts: np.ndarray  # float64 [3 + 2 layer]
    dropped_by: int | None
    pinned: bool = False

    def __str__(self) -> str:
        query, key = (f"{text!r} ({at})" for text, at in zip(self.texts, (self.i, self.j), strict=True))
        lines = [f"Layer {self.layer}: {query} gives {key} the score {self.score:+.4f}.",
                 f"The threshold is {self.threshold:g}. {self._verdict()}", "",
                 f"{self.score:+.4f} = {self.beta:+.4f} (beta) and {len(self.terms)} terms q[d] k[d] / sqrt(r):"]
        order = np.argsort(-np.abs(self.terms), kind="stable")
        for d in order[:MOST]:
            lines.append(f"  d = {d:<4}{self.terms[d]:+9.4f}  {_bar(self.terms[d], np.abs(self.terms).max())}")
        if len(order) > MOST:
            lines.append(f"  the rest{self.terms[order[MOST:]].sum():+8.4f}")
        rows = range(self.j + 1, self.i + 1)[-MOST:]
        lines += ["", f"What {key} was given by the tokens up to {self.i}:"
                      + (" (the last of them)" if len(self.history) > MOST else ""),
                  "  token " + "".join(f"{row:>9}" for row in rows),
                  "  score " + "".join(f"{s:+9.4f}" for s in self.history[-MOST:]), "",
                  f"{self.score - self.beta:+.4f}, without beta, by the parts of the hidden states:",
                  f"  {'':14}{f'of token {self.i}':>12}{f'of token {self.j}':>14}"]
        lines += [f"  {name:14}{q:+12.4f}{k:+14.4f}"
                  for name, q, k in zip(self.parts, self.query_parts, self.key_parts, strict=True)]
        return "\n".join(lines)

    def _verdict(self) -> str:
        by = self.dropped_by
        if self.pinned:
            return "The token is pinned: nothing drops it."
        if by == self.i:
            return "Here the token was dropped."
        return "The layer held the token to the end." if by is None else \
            f"Token {by} dropped it{', before that' if by < self.i else ', later'}."


def why(trace: "Trace", layer: int, i: int, j: int) -> Why:
    """What the score of token j by token i is made of. Raises ValueError unless j < i < T and the policy is learned."""
    layer, (i, j) = check_layer(trace.config, layer), check_pair(trace, i, j)
    q, k, beta = trace.scored
    score = scores_of_pairs(trace, layer, np.array([i]), np.array([j]))[0]
    terms = q[layer, i] * k[layer, j] / np.float32(math.sqrt(q.shape[2]))
    history = scores_of_pairs(trace, layer, np.arange(j + 1, i + 1), j)
    of_q, of_k = projected(trace.replayed, trace.with_weights, layer, np.array([i, j]))  # [P, 2, r]
    by = int(trace.left[layer, j])
    return Why(layer, i, j, (trace.texts[i], trace.texts[j]), float(score), trace.threshold,
               float(score - trace.threshold), float(beta[layer]), terms, history, part_names(layer),
               of_q[:, 0] @ k[layer, j] / math.sqrt(q.shape[2]), of_k[:, 1] @ q[layer, i] / math.sqrt(q.shape[2]),
               by if by < len(trace.ids) else None, j in trace.pinned)


def check_pair(trace: "Trace", i: int, j: int) -> tuple[int, int]:
    """A pair of tokens. Raises ValueError."""
    if not all(isinstance(x, (int, np.integer)) and not isinstance(x, bool) for x in (i, j)):
        raise ValueError(f"i and j must be integers, not {i!r} and {j!r}")
    if not 0 <= j < i < len(trace.ids):
        raise ValueError(f"i and j must be positions with j < i < {len(trace.ids)}, the number of tokens, not i = {i} "
                         f"and j = {j}")
    return int(i), int(j)


def _bar(x: float, largest: float) -> str:
    return ("-" if x < 0 else "+") * round(24 * abs(x) / max(largest, 1e-30))
