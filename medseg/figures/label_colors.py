"""The colours of labels, the same in every picture."""

from __future__ import annotations

import colorsys

import numpy as np

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
