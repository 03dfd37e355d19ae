"""Matplotlib figures without a display, colours of labels, and figures as SVG inside a page."""

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
    """Create an empty figure on matplotlib's Agg canvas, without pyplot's global state.

    Args:
        width, height: size in inches.

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
    """Return the figure as a PNG in memory."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, facecolor=figure.get_facecolor())
    return buffer.getvalue()


def save_png(figure: Any, path: str | Path, dpi: int = 110) -> Path:
    """Write the figure atomically to a PNG file."""
    data = png_bytes(figure, dpi)
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return Path(path)


# Okabe & Ito (2008): distinguishable with every common type of colour vision. Black and grey are those of the images.
OKABE_ITO = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")

# Sky blue and orange, because many people cannot distinguish red and green.
REFERENCE_COLOR, PREDICTION_COLOR = OKABE_ITO[1], OKABE_ITO[0]
_GOLDEN_ANGLE = 137.50776405


def label_palette(count: int) -> list[str]:
    """Return colours for `count` labels: Okabe and Ito's for up to seven, else hues a golden angle apart."""
    if count <= len(OKABE_ITO):
        return list(OKABE_ITO[:count])
    hues = [(position * _GOLDEN_ANGLE) % 360 / 360 for position in range(1, count + 1)]
    parts = [colorsys.hls_to_rgb(hue, 0.6, 1.0) for hue in hues]
    return ["#" + bytes(round(255 * part) for part in color).hex().upper() for color in parts]


def label_color(position: int) -> str:
    """Return the colour of a label by its position (0 is the first after background); colours repeat after seven."""
    return OKABE_ITO[position % len(OKABE_ITO)]


def rgb(color: str) -> tuple[int, int, int]:
    """Convert a colour `#RRGGBB` to red, green and blue, 0 to 255."""
    red, green, blue = bytes.fromhex(color.removeprefix("#"))
    return red, green, blue


def color_labels(label_map: np.ndarray) -> np.ndarray:
    """Colour integers as RGB, uint8, shape (…, 3): 0 is black, colours repeat after seven."""
    palette = np.array([rgb(color) for color in OKABE_ITO], dtype=np.uint8)
    picture = palette[(np.asarray(label_map).astype(np.int64) - 1) % len(palette)]
    picture[np.asarray(label_map) == 0] = 0
    return picture


def inline_svg(figure: Any, name: str, title: str, description: str) -> str:
    """Return the figure as an `svg` element without a background that loads nothing.

    Black parts take the colour of the page's text, so that they stay legible on a dark page. Texts stay texts.

    Args:
        figure: a matplotlib figure.
        name: prefix of every id in the element, so that two figures can stand on one page.
        title: title for screen readers.
        description: the figure's numbers for screen readers.
    """
    import matplotlib

    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    drawn = buffer.getvalue()
    (box,) = re.findall(r'<svg[^>]* viewBox="([^"]+)"', drawn)
    inside = drawn[drawn.index(">", drawn.index("<svg")) + 1 : drawn.rindex("</svg>")]
    # Matplotlib's style rule would apply to every svg of the page; its content becomes attributes of this element.
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
