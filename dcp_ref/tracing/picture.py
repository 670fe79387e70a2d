"""A picture of a short text under a trace: tokens struck out, and arrows from the tokens that dropped them. SVG text.

For a README or a paper: it stands alone, has no script, and is as wide as it is told. `page.py` is the interactive one.
Letters are set in Times or a font as wide as it; `textLength` fits each token to the place that was reckoned for it.
"""

import html
import math
import unicodedata
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from dcp_ref.tracing.page_data import check

SIZE, LINE, MARGIN, ARCS = 20, 46, 20, 150  # pixels: letters, lines of text, the margin, the least room for arrows
LIGHT: dict[str, Any] = {"page": "#ffffff", "ink": "#1d1f24", "quiet": "#5d636e", "lightness": (0.4, 0.7)}
DARK: dict[str, Any] = {"page": "#121418", "ink": "#e8e8ea", "quiet": "#a2a8b4", "lightness": (0.55, 0.86)}
LAB_TO_LMS = np.array([(1, 0.3963377774, 0.2158037573), (1, -0.1055613458, -0.0638541728),
                       (1, -0.0894841775, -1.291485548)])
LMS_TO_RGB = np.array([(4.0767416621, -3.3077115913, 0.2309699292), (-1.2684380046, 2.6097574011, -0.3413193965),
                       (-0.0041960863, -0.7034186147, 1.707614701)])
WIDTHS = (("iljt/", 0.28), (".,", 0.25), (":;fr'()[]-!I", 0.33), ("s", 0.39), ("acez\"?", 0.44), ("w", 0.72),
          ("m", 0.78), ("MW↵", 0.9))  # in ems, by letters
SIGNS = str.maketrans({"\n": "↵", "\r": "␍", "\t": "⇥"})


class Place(NamedTuple):
    """Where a token stands, in pixels: its left edge, its baseline, and its width without the space before it."""

    x: float
    y: float
    width: float


def picture(trace: dict, dark: bool = False, width: int = 860, layers: Iterable[int] | None = None) -> str:
    """An SVG of the whole text after its last token.

    `trace` is what `Trace.to_dict` gives; `layers` are those to show (default all), `width` is in pixels. A token is
    struck out where all these layers dropped it, and paler the more did; the bars under it are the layers that hold it
    to the end.
    Raises ValueError when `trace` is no trace, a layer is not one of its layers, or width is below 200.
    """
    check(trace, "trace")
    L, T = trace["n_layer"], len(trace["ids"])
    shown = list(range(L)) if layers is None else sorted(set(layers))
    if not shown or not all(isinstance(layer, int) and 0 <= layer < L for layer in shown):
        raise ValueError(f"layers must be some of the trace's layers, integers from 0 to {L - 1}, not {shown}")
    if width < 200:
        raise ValueError(f"width must be at least 200 pixels, not {width}")
    look = DARK if dark else LIGHT
    drops = [(layer, by, j) for layer, by, j in zip(trace["drops"]["layer"], trace["drops"]["dropped_by"],
                                                    trace["drops"]["position"], strict=True) if layer in shown]
    colours = {layer: _colour(layer, L, look["lightness"]) for layer in shown}
    places = _places([_visible(text) for text in trace["texts"]], trace["texts"], width)
    height = places[-1].y + 60
    gone = {j: {layer for layer, _, k in drops if k == j} for j in range(T)}
    body = [_arrow(places, by, j, shown.index(layer), len(shown), colours[layer]) for layer, by, j in drops]
    body += [_token(place, _visible(text), list(colours.values()), [layer in gone[j] for layer in shown], look)
             for j, (place, text) in enumerate(zip(places, trace["texts"], strict=True))]
    said = f"{trace['model']}, {trace['policy']}: which token dropped which, by layer"
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height:.0f}" role="img" '
            f'viewBox="0 0 {width} {height:.0f}">\n<title>{_escaped(said)}</title>\n'
            f'<rect width="{width}" height="{height:.0f}" rx="10" fill="{look["page"]}"/>\n' + "\n".join(body) +
            f"\n{_legend(colours, height - 16, look)}\n</svg>\n")


def _colour(layer: int, L: int, lightness: tuple[float, float]) -> str:
    """The colour that the page (page/dom.js) gives this layer: neighbours differ in lightness, which all eyes tell.

    OKLCH as sRGB; the matrices are those of Björn Ottosson's OKLab.
    """
    hue = math.radians(265 + 170 * (layer / (L - 1) if L > 1 else 0))
    lab = np.array([lightness[layer % 2], 0.15 * math.cos(hue), 0.15 * math.sin(hue)])
    linear = np.clip(LMS_TO_RGB @ (LAB_TO_LMS @ lab) ** 3, 0, 1)
    srgb = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return "#" + "".join(f"{round(255 * x):02x}" for x in srgb)


def _visible(text: str) -> str:
    """The text of a token with signs for what is invisible; a piece of a character is a small square."""
    shown = text.strip(" ").translate(SIGNS) or ("␣" * len(text) or "▫")
    return "".join(c if unicodedata.category(c)[0] != "C" else "▫" for c in shown)


def _width(text: str) -> float:
    """The width in pixels, of letters as wide as those of Times; those of East Asia and emoji are square."""
    def ems(c: str) -> float:
        known = next((width for letters, width in WIDTHS if c in letters), 0.7 if c.isupper() else 0.5)
        return 1.0 if unicodedata.east_asian_width(c) in "WF" else known

    return SIZE * sum(map(ems, text))


def _places(shown: list[str], texts: list[str], width: int) -> list[Place]:
    """Tokens set in lines, below the room that arrows need; a line breaks before a space, or where it must."""
    places: list[Place] = []
    x, y = float(MARGIN), float(ARCS)
    for j, (text, whole) in enumerate(zip(shown, texts, strict=True)):
        space = SIZE * 0.3 if whole.startswith(" ") and places and x > MARGIN else 0.0
        word = sum(map(_width, shown[j:j + _pieces(texts, j)]))
        if x > MARGIN and x + space + (word if space else _width(text)) > width - MARGIN:
            x, y, space = float(MARGIN), y + LINE + 40, 0.0
        places.append(Place(x + space, y, _width(text)))
        x += space + _width(text) + 1
        if "\n" in whole:
            x, y = float(MARGIN), y + LINE + 40
    return places


def _pieces(texts: list[str], j: int) -> int:
    """The number of tokens of the word that begins at token j."""
    return next((k - j for k in range(j + 1, len(texts)) if not texts[k][:1].isalnum()), len(texts) - j)


def _arrow(places: list[Place], by: int, j: int, n: int, count: int, colour: str) -> str:
    """A curve from token `by` to token j, the n-th of `count` layers: higher the farther apart the two are."""
    spread = (n - (count - 1) / 2) * min(5, 16 / count)
    x1, x2 = (places[k].x + places[k].width / 2 + spread for k in (by, j))
    y1, y2 = places[by].y - SIZE, places[j].y - SIZE - 3
    top = max(min(y1, y2) - 18 - 0.17 * abs(x1 - x2) - 0.2 * abs(y1 - y2) - 4 * n, 6)
    return (f'<g stroke="{colour}" fill="none"><path d="M{x1:.1f} {y1:.1f}C{x1:.1f} {top:.1f} {x2:.1f} {top:.1f} '
            f'{x2:.1f} {y2:.1f}" stroke-width="1.6" opacity="0.85"/>'
            f'<path d="M{x2:.1f} {y2 + 3:.1f}l-3.5 -7h7z" fill="{colour}" stroke="none"/></g>')


def _token(place: Place, text: str, colours: list[str], gone: list[bool], look: dict) -> str:
    share = sum(gone) / len(gone)
    bars = "".join(
        f'<rect x="{place.x + n * place.width / len(gone):.1f}" y="{place.y + 7:.1f}" height="4" '
        f'width="{place.width / len(gone):.1f}" fill="{colour}"/>'
        for n, (colour, out) in enumerate(zip(colours, gone, strict=True)) if not out)
    strike = (f'<path d="M{place.x - 1:.1f} {place.y - SIZE * 0.3:.1f}h{place.width + 2:.1f}" stroke="{look["ink"]}" '
              'stroke-width="1.6" opacity="0.7"/>') if share == 1 else ""
    return (f'<g><text x="{place.x:.1f}" y="{place.y:.1f}" font-size="{SIZE}" font-family="\'Times New Roman\', Times, '
            f'\'Liberation Serif\', serif" textLength="{place.width:.1f}" fill="{look["ink"]}" '
            f'opacity="{1 - 0.5 * share:.2f}">{_escaped(text)}</text>{strike}{bars}</g>')


def _legend(colours: dict[int, str], y: float, look: dict) -> str:
    style = f'font-size="12" font-family="system-ui, sans-serif" fill="{look["quiet"]}"'
    parts, x = [], MARGIN
    for layer, colour in colours.items():
        name = f"layer {layer}" if len(colours) <= 6 else str(layer)
        parts.append(f'<rect x="{x}" y="{y - 9:.0f}" width="10" height="10" rx="3" fill="{colour}"/>'
                     f'<text x="{x + 15}" y="{y:.0f}" {style}>{name}</text>')
        x += 26 + 7 * len(name)
    return "".join(parts) + (f'<text x="{x + 6}" y="{y:.0f}" {style}>'
                             'arrows: who dropped whom; bars: who holds it to the end</text>')


def _escaped(text: str) -> str:
    return html.escape(text.encode("utf-8", "replace").decode())
