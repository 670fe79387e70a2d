"""Pictures on disk: matplotlib, which may be missing, and PNG files that are replaced whole."""

from pathlib import Path
from typing import TYPE_CHECKING

from dcp_ref.checkpoints.replacing import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def unavailable() -> str | None:
    """Why no picture can be drawn here, and what to install; None if one can."""
    try:
        import matplotlib.backends.backend_agg  # what saving needs
        import matplotlib.figure  # noqa: F401
    except ImportError as error:  # missing, or there but broken
        return f'matplotlib cannot be imported ({error}): pip install "dcp-ref[plot]"'
    return None


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches. It is not registered with pyplot: it needs neither a display nor closing."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: "Figure", path: Path, dpi: int = 120) -> None:
    """Write a PNG file. A failure leaves an older picture as it was. Raises OSError."""
    with replacing(path.parent) as temporary:
        figure.savefig(temporary / path.name, dpi=dpi)
