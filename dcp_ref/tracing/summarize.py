"""What a model drops in whole texts: by layer and kind of token, how long it lives and what drops it."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dcp_ref.analysis.table import markdown, percent
from dcp_ref.tracing.kinds import kinds_of

if TYPE_CHECKING:
    from dcp_ref.tracing.record import Trace

OFTEN = 3  # a token must come this often to be among those that live longest, if one does
MOST = 2  # of these
EXPLAINED = """lifetime: the mean number of rows that held a token, its own included; the end of its text cuts it off
survive: the share that was held to the end
live longest: the tokens with the longest mean lifetime, and how often they occur"""


class Longest(NamedTuple):
    """A token of one text, and its mean lifetime over its occurrences."""

    text: str
    lifetime: float
    occurrences: int


class Row(NamedTuple):
    """The tokens of one kind in one layer. Lifetimes are rows, a token's own included; a window's end cuts them off.

    `survive`: the share that was held to the end. `dropped`: how many were dropped, `dropper` the kind of token that
    dropped most of them (None where none was), and `by_dropper` how many.
    """

    layer: int
    kind: str
    tokens: int
    lifetime: float
    survive: float
    dropped: int
    dropper: str | None
    by_dropper: int
    longest: tuple[Longest, ...]


class Summary(NamedTuple):
    """A Row for each layer and kind that occurs; `kept` [L] is the share of the context kept, over all pairs."""

    rows: list[Row]
    traces: int
    tokens: int
    kept: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same in types that JSON can hold."""
        rows = [row._asdict() | {"longest": [one._asdict() for one in row.longest]} for row in self.rows]
        return self._asdict() | {"rows": rows}

    def __str__(self) -> str:
        lines = [f"{self.tokens} tokens in {self.traces} {'text' if self.traces == 1 else 'texts or windows'}; "
                 f"kept: {percent(float(np.mean(self.kept)))} of the context"]
        header = ["kind", "dropped most by", "live longest", "tokens", "lifetime", "survive"]
        for layer, kept in enumerate(self.kept):
            cells = [[row.kind, _dropper(row), _longest(row), row.tokens, f"{row.lifetime:.1f}", percent(row.survive)]
                     for row in self.rows if row.layer == layer]
            lines += ["", f"layer {layer}: {percent(kept)} kept", "", markdown(header, cells, left=3)]
        return "\n".join([*lines, "", EXPLAINED])


def summary(traces: "Iterable[Trace]", kinds: Mapping[str, str] | None = None) -> Summary:
    """The tokens of all traces by layer and kind; `kinds` are one's own, by regular expression (kinds.py).

    Raises ValueError where there is no trace, numbers of layers differ, or a pattern is no regular expression.
    """
    traces = list(traces)
    if len({len(trace.lifetime) for trace in traces}) != 1:
        raise ValueError("traces: give at least one, all of models with the same number of layers")
    found = [kinds_of(trace.texts, kinds) for trace in traces]
    names, L = found[0][1], len(traces[0].lifetime)
    kind = np.concatenate([of for of, _ in found])  # [N] of all texts, one after the other
    texts = np.array([text for trace in traces for text in trace.texts], object)
    lifetime = np.concatenate([trace.lifetime for trace in traces], axis=1)  # [L, N]
    dropper = np.concatenate([_droppers(trace, of) for trace, (of, _) in zip(traces, found, strict=True)], axis=1)
    rows = [_row(layer, names, n, texts[kind == n], lifetime[layer, kind == n], dropper[layer, kind == n])
            for layer in range(L) for n in np.argsort(-np.bincount(kind, minlength=len(names)), kind="stable")
            if (kind == n).any()]
    pairs = sum(len(trace.ids) * (len(trace.ids) - 1) // 2 for trace in traces)
    kept = tuple((lifetime - 1).sum(1) / pairs) if pairs else (1.0,) * L
    return Summary(rows, len(traces), len(texts), tuple(map(float, kept)))


def _droppers(trace: "Trace", kind: np.ndarray) -> np.ndarray:  # [T] -> [L, T]
    """The kind of the token that dropped each token, -1 where none did."""
    return np.append(kind, -1)[trace.left]


def _row(layer: int, names: tuple[str, ...], n: int, texts: np.ndarray, lifetime: np.ndarray, dropper: np.ndarray
         ) -> Row:  # [n] x 3
    by = Counter(dropper[dropper >= 0].tolist())
    [(most, times)] = by.most_common(1) or [(None, 0)]
    return Row(layer, names[n], len(texts), float(lifetime.mean()), float((dropper < 0).mean()), by.total(),
               None if most is None else names[most], times, _longest_lived(texts, lifetime))


def _longest_lived(texts: np.ndarray, lifetime: np.ndarray) -> tuple[Longest, ...]:
    lives = defaultdict(list)
    for text, life in zip(texts.tolist(), lifetime.tolist(), strict=True):
        lives[text].append(life)
    least = min(OFTEN, max(map(len, lives.values())))
    found = [Longest(text, sum(of) / len(of), len(of)) for text, of in lives.items() if len(of) >= least]
    return tuple(sorted(found, key=lambda one: (-one.lifetime, -one.occurrences, one.text))[:MOST])


def _dropper(row: Row) -> str:
    return "" if row.dropper is None else f"{row.dropper} ({row.by_dropper / row.dropped:.0%})"


def _longest(row: Row) -> str:
    return ", ".join(f"{one.text!r} {one.lifetime:.0f} ({one.occurrences})" for one in row.longest)
