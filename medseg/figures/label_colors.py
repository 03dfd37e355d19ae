"""The colours of labels, the same in every picture."""

from __future__ import annotations

import numpy as np

# Okabe & Ito (2008): distinguishable with every common colour vision; black and grey are left to the images.
OKABE_ITO = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")


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
