"""The walk-through runs from top to bottom, and what it prints and shows is what stands in the file."""

import base64
import json
import re
import struct
import warnings

import numpy as np
import pytest
from doc_tools import assert_prints
from test_readme import ROOT

pytest.importorskip("matplotlib")
from notebook_tools import pictures, printed, run

WALKTHROUGH = ROOT / "examples" / "walkthrough.ipynb"
NOTEBOOK = json.loads(WALKTHROUGH.read_text(encoding="utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
PARTS = ["A gate", "Scores", "The mask", "Attention", "Training", "Decoding", "The theorem", "Who dropped whom"]


def size(png):
    """Width and height in pixels."""
    return struct.unpack(">II", base64.b64decode(png)[16:24])


def test_it_runs_and_shows_what_it_says():
    with warnings.catch_warnings():
        outputs = run(NOTEBOOK)
    for cell, (text, shown) in zip(CODE, outputs, strict=True):
        assert_prints(text, printed(cell))
        assert list(map(size, shown)) == list(map(size, pictures(cell)))
    assert sum(len(pictures(cell)) for cell in CODE) == 4


def test_every_cell_was_run_in_order_and_the_file_is_small():
    assert [cell["execution_count"] for cell in CODE] == list(range(1, len(CODE) + 1))
    assert all(cell["outputs"] for cell in CODE)
    assert WALKTHROUGH.stat().st_size < 200_000


def test_it_is_the_paper_in_order():
    titles = re.findall(r"^## \d\. (.*)$", "\n".join("".join(cell["source"]) for cell in NOTEBOOK["cells"]), re.M)
    assert len(titles) == len(PARTS)
    assert all(title.startswith(part) for title, part in zip(titles, PARTS, strict=True))


def test_all_files_that_it_names_exist():
    links = [link for cell in NOTEBOOK["cells"] for link in re.findall(r"\]\(([^)]+)\)", "".join(cell["source"]))]
    assert len(links) > 6 and [link for link in links if not (WALKTHROUGH.parent / link).exists()] == []


def test_it_is_a_notebook_of_version_4_5():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in NOTEBOOK["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[\w-]{1,64}", name) for name in ids)
    assert np.all([set(cell) == ({"cell_type", "id", "metadata", "source"} | (
        {"execution_count", "outputs"} if cell["cell_type"] == "code" else set())) for cell in NOTEBOOK["cells"]])
