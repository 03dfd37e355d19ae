"""A small picture of one case: the slice where reference and prediction differ most, with both outlines."""

from __future__ import annotations

import base64
import math
import struct
import zlib

import numpy as np
from scipy import ndimage

from medseg.figures.label_colors import PREDICTION_COLOR, REFERENCE_COLOR, rgb
from medseg.figures.panels import Panel
from medseg.figures.viewer.view import View

REFERENCE_RGB, PREDICTION_RGB = rgb(REFERENCE_COLOR), rgb(PREDICTION_COLOR)
_GREYS = 48
_REFERENCE, _PREDICTION = _GREYS, _GREYS + 1
MAX_BYTES = 30_000
MARGIN_MM = 10.0
# From this size on, outlines are two pixels wide.
THICK_FROM = 128


def thumbnail(view: View, size: int = 160) -> str:
    """A PNG in base64, at most 30 kB, its longer side ``size`` pixels in true proportions."""
    while True:
        png = _draw(view, size)
        if len(png) <= MAX_BYTES or size <= 32:
            return base64.b64encode(png).decode("ascii")
        size = size * 3 // 4


def telling_slice(view: View, panel: Panel) -> int:
    """Where most voxels differ; without any difference where most are labelled; else the middle."""
    others = tuple(axis for axis in range(3) if axis != panel.axis)
    reference = _reference(view)
    for mask in (reference != view.prediction, reference != 0):
        counts = np.count_nonzero(mask, axis=others)
        if counts.any():
            return int(counts.argmax())
    return view.prediction.shape[panel.axis] // 2


def _draw(view: View, size: int) -> bytes:
    panel = view.panels[0]
    position = telling_slice(view, panel)
    spacing = view.spacing
    shown = _around_labels(view, panel)

    def plane(volume: np.ndarray) -> np.ndarray:
        return panel.cut(volume, position)[shown]

    rows, columns = plane(view.prediction).shape
    height_mm, width_mm = rows * spacing[panel.down], columns * spacing[panel.across]
    scale = size / max(height_mm, width_mm)
    height, width = max(round(height_mm * scale), 1), max(round(width_mm * scale), 1)
    take = np.ix_(np.arange(height) * rows // height, np.arange(width) * columns // width)
    pixels = np.zeros((height, width), dtype=np.uint8)
    for channel in view.channels[:1]:
        shades = np.rint(channel.grey.shades(next(iter(channel.grey.windows))) * (_GREYS - 1)).astype(np.uint8)
        pixels = shades[plane(channel.levels)[take]]
    line = 2 if size >= THICK_FROM else 1
    pixels[outline(plane(_reference(view))[take], line)] = _REFERENCE
    predicted = outline(plane(view.prediction)[take], line)
    across, down = np.indices(predicted.shape)
    pixels[predicted & ((across + down) % 8 < 4)] = _PREDICTION
    return _palette_png(pixels)


def _reference(view: View) -> np.ndarray:
    """The reference; without one nothing is missed or spurious."""
    return view.prediction if view.reference is None else view.reference


def outline(labels: np.ndarray, width: int = 1) -> np.ndarray:
    """The labelled pixels that lie at most so many pixels from another label, the background or the border."""
    padded = np.pad(labels, width)
    rows, columns = labels.shape
    edges = np.zeros(labels.shape, dtype=bool)
    for step in range(1, width + 1):
        for down, right in ((-step, 0), (step, 0), (0, -step), (0, step)):
            side = padded[width + down : width + down + rows, width + right : width + right + columns]
            edges |= labels != side
    return edges & (labels != 0)


def _around_labels(view: View, panel: Panel) -> tuple[slice, slice]:
    """Rows and columns of a plane that any label needs, with 10 mm around them; all where there is none."""
    labelled = (view.prediction != 0) | (_reference(view) != 0)
    flat = panel.cut(labelled.any(axis=panel.axis, keepdims=True), 0)
    found = ndimage.find_objects(flat.astype(np.uint8))
    if not found:
        return slice(None), slice(None)
    margins = [math.ceil(MARGIN_MM / view.spacing[axis]) for axis in (panel.down, panel.across)]
    rows, columns = (
        slice(max(side.start - margin, 0), side.stop + margin) for side, margin in zip(found[0], margins, strict=True)
    )
    return rows, columns


def _palette_png(pixels: np.ndarray) -> bytes:
    """A PNG of palette indices: 48 greys and the two outlines."""
    greys = [(round(255 * g / (_GREYS - 1)),) * 3 for g in range(_GREYS)]
    palette = bytes(value for rgb in (*greys, REFERENCE_RGB, PREDICTION_RGB) for value in rgb)
    height, width = pixels.shape
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels], axis=1)  # each line begins with its filter: none
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))
        + _chunk(b"PLTE", palette)
        + _chunk(b"IDAT", zlib.compress(lines.tobytes(), 9))
        + _chunk(b"IEND", b"")
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
