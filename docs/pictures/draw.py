"""Draws the pictures of README and docs from traces of the shipped model: python docs/pictures/draw.py [FOLDER]."""

import sys
from pathlib import Path

import dcp_ref
from dcp_ref.tracing.picture import picture

SENTENCE = "The old man looked at the sea, and the sea looked back at him."
PICTURES = {"one-layer": ([2], 640), "all-layers": (None, 720)}  # layers (None: all), width in pixels


def draw(folder: Path) -> None:
    """Write each picture twice, NAME-light.svg and NAME-dark.svg."""
    trace = dcp_ref.trace(dcp_ref.load("tiny"), SENTENCE).to_dict()
    for name, (layers, width) in PICTURES.items():
        for look in ("light", "dark"):
            svg = picture(trace, dark=look == "dark", width=width, layers=layers)
            (folder / f"{name}-{look}.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
