"""Tables in Markdown that line up in a terminal too."""

from collections.abc import Sequence
from typing import Any


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]], left: int = 1) -> str:
    """The first `left` columns are aligned to the left, the others to the right."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    rule = ["-" * width if n < left else "-" * (width - 1) + ":" for n, width in enumerate(widths)]
    lines = [[cell.ljust(width) if n < left else cell.rjust(width)
              for n, (cell, width) in enumerate(zip(row, widths, strict=True))] for row in (cells[0], rule, *cells[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(share: float) -> str:
    """One digit after the point, and two below 10%."""
    return f"{share:.1%}" if share >= 0.1 else f"{share:.2%}"
