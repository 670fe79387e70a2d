"""The page of a trace: one HTML text that holds its data, style and script, and can fetch nothing.

The sources are the files of page/, in the order of SCRIPTS; `page` puts them together. A Content-Security-Policy names
the hashes of the style and the script, so that a browser runs these two and nothing else, and loads nothing at all.
"""

import base64
import hashlib
import html
import json
from pathlib import Path

from dcp_ref.tracing.page_data import check, compact

SOURCES = Path(__file__).parent / "page"
SCRIPTS = ("data", "dom", "state", "header", "text", "arrows", "charts", "lifelines", "masks", "why", "whatif",
           "compare", "find", "share", "main")


def page(traces: list[dict], title: str | None = None) -> str:
    """The HTML page of one trace, or of two that it compares.

    `traces` are what `Trace.to_dict` gives; `title` is the heading, by default "Who dropped whom". A trace that would
    make the page larger than about 6 MB has its numbers in half precision or left out, and the page says so.
    Raises ValueError when there are not one or two traces, or when one is no trace.
    """
    if not isinstance(traces, list) or len(traces) not in (1, 2):
        raise ValueError("traces must be a list of one trace, or of two to compare, each as Trace.to_dict() gives it")
    for n, trace in enumerate(traces):
        check(trace, f"traces[{n}]")
    script = "(() => {\n\"use strict\";\n" + "\n".join(_source(f"{name}.js") for name in SCRIPTS) + "})();\n"
    style = _source("page.css")
    policy = (f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; "
              "base-uri 'none'; form-action 'none'")
    return _filled(_source("page.html"), {
        "policy": policy, "title": html.escape(title or "Who dropped whom"), "style": style, "script": script,
        "static": f"<noscript>{''.join(map(_table, traces))}</noscript>",
        "data": _embedded({"traces": [compact(trace) for trace in traces]})})


def _source(name: str) -> str:
    return (SOURCES / name).read_text(encoding="utf-8")


def _filled(template: str, values: dict[str, str]) -> str:
    """The template with each {{name}} replaced once; what is put in is not looked at again."""
    first, *rest = template.split("{{")
    parts = [first]
    for piece in rest:
        name, _, text = piece.partition("}}")
        parts += [values[name], text]
    return "".join(parts)


def _hash(text: str) -> str:
    """A source of a Content-Security-Policy: an inline script or style of exactly this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _embedded(data: dict) -> str:
    """JSON that cannot end the script element that it is in, whatever the texts of tokens are."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _table(trace: dict) -> str:
    """What a reader without JavaScript gets: a row a token, a column a layer, and who dropped the token there."""
    T, L, drops = len(trace["ids"]), trace["n_layer"], trace["drops"]
    cells = [["held"] * L for _ in range(T)]
    for layer, position, by in zip(drops["layer"], drops["position"], drops["dropped_by"], strict=True):
        cells[position][layer] = f"{by} {_shown(trace['texts'][by])}"
    head = "".join(f"<th scope=col>layer {layer}</th>" for layer in range(L))
    rows = "".join(
        f"<tr><th scope=row>{j} {_shown(trace['texts'][j])}</th>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>\n"
        for j, row in enumerate(cells))
    return (f"<p>{_shown(trace['model'])}, {_shown(trace['policy'])}. Each cell names the token that dropped the "
            f"row’s token in that layer.</p>\n<div class=static><table>\n<tr><td></td>{head}</tr>\n{rows}"
            "</table></div>\n")


def _shown(text: str) -> str:
    """Text for HTML: escaped, with line ends as signs. A lone surrogate, which UTF-8 cannot hold, becomes "?"."""
    return html.escape(str(text).encode("utf-8", "replace").decode()).replace("\n", "↵").replace("\r", "␍")
