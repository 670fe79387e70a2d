"""Two traces of the same tokens: what two thresholds, policies or models drop differently."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dcp_ref.analysis.table import markdown, percent
from dcp_ref.tracing.drops import rows_that_dropped

if TYPE_CHECKING:
    from dcp_ref.tracing.record import Trace

MOST = 8  # tokens that `str` shows


class Differences(NamedTuple):
    """What trace b does otherwise than trace a; `names` say which traces these are.

    `only_a`, `only_b` int32 [n, 3]: (layer, position, dropped_by) of drops that only one of them has.
    `lifetime` int32 [L, T]: b's less a's. `kept_a`, `kept_b` float64 [L]: the share of the context kept.
    """

    names: tuple[str, str]
    texts: tuple[str, ...]
    only_a: np.ndarray
    only_b: np.ndarray
    lifetime: np.ndarray
    kept_a: np.ndarray
    kept_b: np.ndarray

    def __str__(self) -> str:
        rows = [[layer, percent(a), percent(b), (self.only_a[:, 0] == layer).sum(), (self.only_b[:, 0] == layer).sum(),
                 f"{self.lifetime[layer].mean():+.1f}"]
                for layer, (a, b) in enumerate(zip(self.kept_a, self.kept_b, strict=True))]
        lines = [f"a: {self.names[0]}", f"b: {self.names[1]}", "", markdown(
            ["layer", "kept by a", "kept by b", "drops of a alone", "drops of b alone", "mean lifetime, b - a"], rows)]
        change = self.lifetime.sum(0)
        most = [t for t in np.argsort(-np.abs(change), kind="stable")[:MOST] if change[t]]
        if most:
            lines += ["", "Lifetimes that differ most, b - a, all layers together:"]
            lines += [f"  {change[t]:+6d}  token {t:<5} {self.texts[t]!r}" for t in most]
        return "\n".join(lines)


def compare(a: "Trace", b: "Trace") -> Differences:
    """What b does otherwise than a. Raises ValueError for traces of other tokens, or of another number of layers."""
    if not np.array_equal(a.ids, b.ids):
        raise ValueError("other: it is a trace of other tokens; trace the same token ids")
    if a.lifetime.shape != b.lifetime.shape:
        raise ValueError(f"other: its model has {len(b.lifetime)} layers, and this one's {len(a.lifetime)}")
    of_a, of_b = (set(zip(*(x.tolist() for x in rows_that_dropped(trace.lifetime)), strict=True)) for trace in (a, b))
    only_a, only_b = (np.array(sorted(only), np.int32).reshape(-1, 3) for only in (of_a - of_b, of_b - of_a))
    return Differences((a.title, b.title), a.texts, only_a, only_b, b.lifetime - a.lifetime, a.share_kept, b.share_kept)
