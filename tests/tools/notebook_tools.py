"""Notebooks without a kernel: their cells run one after the other here.

    python tests/tools/notebook_tools.py examples/walkthrough.ipynb     writes the outputs of all cells anew
"""

import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from unittest import mock

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot


def run(notebook):
    """The outputs of each code cell: what it prints, then the pictures that it shows, as PNG."""
    namespace, found = {"__name__": "__main__"}, []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            pictures = []
            with mock.patch.object(pyplot, "show", lambda shown=pictures: shown.append(_png())), \
                    contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile("".join(cell["source"]), "<cell>", "exec"), namespace)
            found.append((printed.getvalue(), pictures))
    return found


def _png():
    data = io.BytesIO()
    pyplot.savefig(data, format="png", dpi=72, metadata={"Software": None})
    pyplot.close("all")
    return base64.b64encode(data.getvalue()).decode()


def printed(cell):
    """What the file says that a cell prints."""
    return "".join(line for output in cell["outputs"] if output["output_type"] == "stream" for line in output["text"])


def pictures(cell):
    """The pictures that the file has of a cell."""
    return [output["data"]["image/png"] for output in cell["outputs"] if output["output_type"] == "display_data"]


def write_outputs(path):
    """Run a notebook's cells, and write what they print and show into it."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for n, (cell, (text, shown)) in enumerate(zip(code, run(notebook), strict=True), 1):
        cell["execution_count"] = n
        stream = {"output_type": "stream", "name": "stdout", "text": text.splitlines(True)}
        cell["outputs"] = [stream] * bool(text) + [
            {"output_type": "display_data", "metadata": {}, "data": {"image/png": png}} for png in shown]
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_outputs(Path(sys.argv[1]))
