"""Matplotlib without a display: imported late, drawn to memory, saved whole or not at all."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from medseg.volumes import replacing


def new_figure(width: float, height: float) -> Any:
    """An empty figure of that size in inches, on matplotlib's Agg canvas and outside pyplot's global state.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("pictures need matplotlib; install it with: pip install 'medseg[figures]'") from error
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def png_bytes(figure: Any, dpi: int = 110) -> bytes:
    """The figure as a PNG in memory."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor=figure.get_facecolor())
    return buffer.getvalue()


def save_png(figure: Any, path: str | Path, dpi: int = 110) -> Path:
    """Write the figure to a PNG file, whole or not at all."""
    data = png_bytes(figure, dpi)
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return Path(path)
