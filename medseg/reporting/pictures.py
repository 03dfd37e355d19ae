"""Every picture of the page within its size: volumes for the viewer and thumbnails, packed case by case."""

from __future__ import annotations

import base64
import json
import math
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from scipy import ndimage

from medseg.evaluation.overlap import bounding_box, union
from medseg.evaluation.pairs import Structures, read_pair
from medseg.figures.canvas import PREDICTION_COLOR, REFERENCE_COLOR, rgb
from medseg.figures.planes import Panel
from medseg.figures.viewer import block
from medseg.figures.viewer.packing import fitted, num_bytes
from medseg.figures.viewer.view import View, cut_out
from medseg.reporting.images import Images
from medseg.volumes import Grid, suffix_of


def case_view(
    prediction: np.ndarray,
    reference: np.ndarray,
    grid: Grid,
    images: Iterable[tuple[str, np.ndarray]],
    *,
    modalities: Mapping[str, str] | None = None,
    has_patient: bool = True,
    known: Sequence[int] | None = None,
) -> View:
    """Crop a case to both masks with 20 mm around them; without any label the whole image is kept.

    Args:
        prediction, reference: integer label maps of the grid's shape.
        grid: of everything.
        images: name and image of each channel, of the same shape; taken one at a time.
        modalities: channel name → modality; a channel without looks at its values.
        has_patient: whether the grid lies in a patient.
        known: the label values to show; None shows all.
    """
    box = union(grid.spatial_dims, (bounding_box(labels) for labels in (prediction, reference)))
    return cut_out(
        prediction, reference, grid, images, box, modalities=modalities, has_patient=has_patient, known=known
    )


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


BLOCK = 50
# Longer side of a thumbnail in pixels by the number of cases, and what one takes as text at most.
THUMBNAIL_SIZES = ((100, 160, 30_000), (300, 128, 15_000), (10**9, 96, 9_000))
_WITHOUT_PATIENT = (".png", ".tif", ".tiff")


@dataclass
class Pictures:
    """What was drawn, as text for the page.

    Args:
        views: case id → its view as packed, in page order.
        volumes: case id → its packed volumes by the name of their block.
        thumbnails: case id → PNG in base64.
        problems: case id → why its picture or its image is missing.
    """

    views: dict[str, View] = field(default_factory=dict)
    volumes: dict[str, dict[str, str]] = field(default_factory=dict)
    thumbnails: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Size of all of them in the page."""
        return sum(map(len, self.thumbnails.values())) + sum(map(num_bytes, self.volumes.values()))

    def blocks(self, order: Sequence[str]) -> str:
        """The inert script elements that hold them; thumbnails in blocks of 50 in this order."""
        parts = []
        for number, packed in enumerate(self.volumes.values()):
            parts += [block(f"v{number}-{name}", text) for name, text in packed.items()]
        if self.thumbnails:
            for number, start in enumerate(range(0, len(order), BLOCK)):
                listed = json.dumps([self.thumbnails.get(case) for case in order[start : start + BLOCK]])
                parts.append(f'<script type="application/json" id="thumbnails-{number}">{listed}</script>')
        return "\n".join(parts)


def draw_pictures(
    inputs: Sequence[Mapping[str, str]],
    images: Images,
    structures: Structures,
    label_values: Mapping[str, Sequence[int]],
    opened: Sequence[str],
    max_bytes: int,
    *,
    progress: bool = False,
) -> Pictures:
    """Draw the cases, worst first, into at most so many bytes.

    What does not fit is left out in this order: voxels of the viewer's volumes, their channels beyond the first,
    thumbnails of the best cases, volumes of the best cases.

    Args:
        inputs: case, prediction and reference file of each case, worst first.
        images: where the scans are.
        structures: what the label files' values mean.
        label_values: the values of each structure.
        opened: the cases that can be opened in the viewer, the most important first.
        max_bytes: of all pictures together, as text.
        progress: show a progress bar.
    """
    known = list(dict.fromkeys(value for values in label_values.values() for value in values if value != 0))
    pixels, reserved = next((size, most) for cases, size, most in THUMBNAIL_SIZES if len(inputs) <= cases)
    volumes_left = max(max_bytes - min(len(inputs) * reserved, max_bytes // 3), 0)
    waiting = len(opened)
    pictures = Pictures()
    console = Console(stderr=True)
    for entry in track(inputs, description="drawing", disable=not progress, transient=True, console=console):
        case = entry["case"]
        view = _read_view(entry, images, structures, known, pictures.problems, None if case in opened else 1)
        if view is not None:
            pictures.thumbnails[case] = thumbnail(view, pixels)
        if case not in opened:
            continue
        if view is not None:
            thin, packed = fitted(view, volumes_left // max(waiting, 1))
            volumes_left -= num_bytes(packed)
            pictures.views[case] = thin
            pictures.volumes[case] = packed
        waiting -= 1
    order = [entry["case"] for entry in inputs]
    _drop_to_fit(pictures, order, opened, max_bytes)
    # the viewer's order, in which the blocks are numbered
    pictures.views = {case: pictures.views[case] for case in opened if case in pictures.views}
    pictures.volumes = {case: pictures.volumes[case] for case in pictures.views}
    return pictures


def _read_view(
    entry: Mapping[str, str],
    images: Images,
    structures: Structures,
    known: Sequence[int],
    problems: dict[str, str],
    max_channels: int | None,
) -> View | None:
    case, reference_file = entry["case"], Path(entry["reference"])
    pair, found = read_pair(case, Path(entry["prediction"]), reference_file, structures)
    if pair is None:
        problems[case] = f"no picture: {found[0].rule}, {found[0].found}"
        return None
    prediction, reference, grid = pair
    left_out: list[str] = []
    view = case_view(
        prediction,
        reference,
        grid,
        islice(images.read(case, grid, left_out), max_channels),
        modalities=images.modalities,
        has_patient=suffix_of(reference_file) not in _WITHOUT_PATIENT,
        known=known,
    )
    if left_out:
        problems[case] = "; ".join(left_out)
    return replace(view, notes=(*view.notes, *left_out))


def _drop_to_fit(pictures: Pictures, order: Sequence[str], opened: Sequence[str], max_bytes: int) -> None:
    best_first = [case for case in reversed(order) if case not in opened] + [*reversed(opened)]
    for held in (pictures.thumbnails, pictures.volumes):
        for case in best_first:
            if pictures.num_bytes <= max_bytes:
                return
            held.pop(case, None)
            if held is pictures.volumes:
                pictures.views.pop(case, None)
