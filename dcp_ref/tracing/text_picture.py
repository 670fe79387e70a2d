"""A trace in a terminal: the text in lines of 80 columns and, below each token, who dropped it in each layer."""

import unicodedata
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from dcp_ref.tracing.record import Trace

WIDTH, MARGIN = 80, 9  # columns; of these for the names of the lines
MOST = 128  # tokens that are shown; a page shows all
BARS = " ▁▂▃▄▅▆▇█"
EXPLAINED = ("Below each token: its position; then, for each layer, the position of the token",
             "that dropped it, or · where the layer holds it to the end.")
SHOWN = {"\n": "↵", "\r": "␍", "\t": "→"}


def picture(trace: "Trace") -> str:
    """Facts, a curve of live tokens a layer, then the tokens."""
    T = len(trace.ids)
    new = f", {T - trace.prompt_tokens} of them generated" if trace.prompt_tokens < T else ""
    new += f", {len(trace.pinned)} pinned" if trace.pinned else ""
    lines = [f"{trace.title}: {T} tokens{new}", "",
             f"{'':{MARGIN}}live tokens, from the first step to the last"]
    most = int(trace.live_counts.max())
    for layer, (counts, kept) in enumerate(zip(trace.live_counts, trace.share_kept, strict=True)):
        lines.append(f"layer {layer:<3}{_curve(counts, most)}  {counts[-1]} at the end; {kept:.0%} of the context kept")
    lines += ["", *EXPLAINED]
    start = 0
    while start < min(T, MOST):
        end, cells = start, list[int]()
        while end < min(T, MOST) and sum(cells) + (n := _cell(trace, end)) <= WIDTH - MARGIN:
            cells.append(n)
            end += 1
        end = max(end, start + 1)
        lines += ["", *_block(trace, start, end, cells or [WIDTH - MARGIN])]
        start = end
    if T > MOST:
        lines += ["", f"... and {T - MOST} tokens more: trace.to_html() shows all"]
    return "\n".join(line.rstrip() for line in lines)


def _block(trace: "Trace", start: int, end: int, cells: list[int]) -> list[str]:
    T, tokens = len(trace.ids), range(start, end)
    rows = [("", [_shown(trace.texts[t]) for t in tokens]), ("token", [str(t) for t in tokens])]
    for layer in range(trace.config.n_layer):
        rows.append((f"layer {layer}", [str(by) if (by := trace.left[layer, t]) < T else "·" for t in tokens]))
    return [f"{name:{MARGIN}}" + "".join(_padded(text, n) for text, n in zip(texts, cells, strict=True))
            for name, texts in rows]


def _cell(trace: "Trace", t: int) -> int:
    """The columns that a token takes: its text, or the numbers below it and a space."""
    numbers = [t, *(by for by in trace.left[:, t].tolist() if by < len(trace.ids))]
    return min(max(_columns(_shown(trace.texts[t])), len(str(max(numbers))) + 1), WIDTH - MARGIN)


def _curve(counts: np.ndarray, most: int, width: int = 24) -> str:
    """A bar for each of `width` equal parts of the steps: the mean of the counts there."""
    parts = np.array_split(counts, min(width, len(counts)))
    return "".join(BARS[max(1, round(part.mean() / most * (len(BARS) - 1)))] for part in parts).ljust(width)


def _shown(text: str) -> str:
    """The text without what would move the cursor."""
    return "".join(SHOWN.get(c, c if c.isprintable() else "·") for c in text)


def _columns(text: str) -> int:
    """The columns that a text takes in a terminal: wide characters take two, those that combine none."""
    return sum(0 if unicodedata.combining(c) or unicodedata.category(c) in ("Mn", "Me", "Cf") else
               2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _padded(text: str, n: int) -> str:
    while _columns(text) > n:
        text = text[:-1]
    return text + " " * (n - _columns(text))
