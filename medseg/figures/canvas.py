"""Matplotlib without a display: imported late, drawn to memory, saved whole or not at all."""

from __future__ import annotations

import colorsys
import io
import re
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

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


# Okabe & Ito (2008): distinguishable with every common colour vision; black and grey are left to the images.
OKABE_ITO = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")


# What an evaluation compares: sky blue and orange, never red against green.
REFERENCE_COLOR, PREDICTION_COLOR = OKABE_ITO[1], OKABE_ITO[0]
_GOLDEN_ANGLE = 137.50776405


def label_palette(count: int) -> list[str]:
    """Colours of so many labels beside each other: Okabe and Ito's up to seven, else hues a golden angle apart."""
    if count <= len(OKABE_ITO):
        return list(OKABE_ITO[:count])
    hues = [(position * _GOLDEN_ANGLE) % 360 / 360 for position in range(1, count + 1)]
    parts = [colorsys.hls_to_rgb(hue, 0.6, 1.0) for hue in hues]
    return ["#" + bytes(round(255 * part) for part in color).hex().upper() for color in parts]


def label_color(position: int) -> str:
    """Colour of the label at a position (0 is the first label after the background); repeats after seven."""
    return OKABE_ITO[position % len(OKABE_ITO)]


def rgb(color: str) -> tuple[int, int, int]:
    """Red, green and blue, 0 to 255, of a colour written as #RRGGBB."""
    red, green, blue = bytes.fromhex(color.removeprefix("#"))
    return red, green, blue


def color_labels(label_map: np.ndarray) -> np.ndarray:
    """RGB picture (…, 3) uint8 of integers: 0 black, then the seven colours over and over."""
    palette = np.array([rgb(color) for color in OKABE_ITO], dtype=np.uint8)
    picture = palette[(np.asarray(label_map).astype(np.int64) - 1) % len(palette)]
    picture[np.asarray(label_map) == 0] = 0
    return picture


def inline_svg(figure: Any, name: str, title: str, description: str) -> str:
    """The figure as an `svg` element that loads nothing, without a background.

    What matplotlib draws black follows the page's text, so that it stays legible on a dark page; words stay words.

    Args:
        figure: drawn by one of this package's functions.
        name: begins every id inside, so that two figures fit on one page.
        title: read aloud in the figure's place.
        description: its numbers, for those who do not see it.
    """
    import matplotlib

    buffer = io.StringIO()
    without = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=without)
    drawn = buffer.getvalue()
    (box,) = re.findall(r'<svg[^>]* viewBox="([^"]+)"', drawn)
    inside = drawn[drawn.index(">", drawn.index("<svg")) + 1 : drawn.rindex("</svg>")]
    # its rule for every element of the page becomes attributes of this one
    inside = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", inside, flags=re.DOTALL)
    inside = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", inside, flags=re.DOTALL)
    inside = inside.replace("xlink:href", "href").replace("#000000", "currentColor")
    inside = re.sub(r"font-family: [^;\"]+", "font-family: inherit", inside)
    inside = re.sub(r'\bid="', f'id="{name}-', inside)
    inside = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", inside)
    inside = re.sub(r"\s*\n\s*", "\n", inside)
    words = (
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-description">{escape(description)}</desc>'
    )
    return (
        f'<svg class="figure" role="img" aria-labelledby="{name}-title" aria-describedby="{name}-description" '
        f'viewBox="{box}" fill="currentColor" stroke-linejoin="round" stroke-linecap="butt">{words}{inside}</svg>'
    )
