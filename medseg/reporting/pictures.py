"""Pictures of the page within its size limit: volumes for the viewer and thumbnails, packed case by case."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track
from scipy import ndimage

from medseg.evaluation.overlap import bounding_box, union
from medseg.evaluation.pairs import Structures, read_pair
from medseg.figures.canvas import PREDICTION_COLOR, REFERENCE_COLOR, label_palette, rgb
from medseg.figures.planes import Panel
from medseg.figures.viewer import block
from medseg.figures.viewer.packing import fitted, num_bytes
from medseg.figures.viewer.view import View, cut_out
from medseg.reporting.images import Images
from medseg.volumes import Grid, suffix_of

# Thumbnails lie in the page in blocks of so many cases, which the scripts parse when one of them is shown.
CASES_PER_BLOCK = 50
# Up to so many cases: longer side of a thumbnail in pixels, and the bytes reserved for its text.
THUMBNAIL_SIZES = ((100, 160, 30_000), (300, 128, 15_000), (10**9, 96, 9_000))
MAX_THUMBNAIL_BYTES = 30_000
THUMBNAIL_MARGIN_MM = 10.0
# From this size on, the outlines of a thumbnail are two pixels wide.
THICK_OUTLINE_FROM = 128
REFERENCE_RGB, PREDICTION_RGB = rgb(REFERENCE_COLOR), rgb(PREDICTION_COLOR)
# The colours of outlines follow behind the greys in the palette of a thumbnail, which has 256 entries.
_NUM_GREYS = 48
_MAX_COLORS = 256 - _NUM_GREYS
SUFFIXES_WITHOUT_PATIENT = (".png", ".tif", ".tiff", ".jpg", ".jpeg")


@dataclass
class Pictures:
    """Views, volumes and thumbnails as text for the page.

    Args:
        views: case id → its view as packed, in the order of the viewer.
        volumes: case id → packed volumes by the name of their block.
        thumbnails: case id → PNG in base64.
        problems: case id → why its picture or image is missing.
    """

    views: dict[str, View] = field(default_factory=dict)
    volumes: dict[str, dict[str, str]] = field(default_factory=dict)
    thumbnails: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Size of all pictures in the page."""
        return sum(map(len, self.thumbnails.values())) + sum(map(num_bytes, self.volumes.values()))

    def blocks(self, order: Sequence[str]) -> str:
        """Return the inert script elements that hold the pictures.

        Args:
            order: case ids in the order of the page, which thumbnails follow in blocks of 50.
        """
        parts = []
        for number, packed in enumerate(self.volumes.values()):
            parts += [block(f"v{number}-{name}", text) for name, text in packed.items()]
        if self.thumbnails:
            for number, start in enumerate(range(0, len(order), CASES_PER_BLOCK)):
                listed = json.dumps([self.thumbnails.get(case) for case in order[start : start + CASES_PER_BLOCK]])
                parts.append(f'<script type="application/json" id="thumbnails-{number}">{listed}</script>')
        return "\n".join(parts)


# Read the view of a case, with at most so many channels (None: all); the problems get a line if something is missing.
ReadView = Callable[[str, int | None, dict[str, str]], View | None]


def draw_pictures(
    cases: Sequence[str],
    read_view: ReadView,
    opened: Sequence[str],
    max_bytes: int,
    *,
    progress: bool = False,
) -> Pictures:
    """Draw thumbnails and pack volumes of the cases within a size limit.

    What does not fit is left out in this order: resolution of the viewer's volumes, their channels beyond the first,
    thumbnails of the last cases, volumes of the last cases.

    Args:
        cases: case ids in the order of the page.
        read_view: reads the view of a case.
        opened: cases that can be opened in the viewer, the most important first.
        max_bytes: largest size of all pictures together, as text.
        progress: show a progress bar.
    """
    pixels, reserved = next((size, reserve) for count, size, reserve in THUMBNAIL_SIZES if len(cases) <= count)
    volumes_left = max(max_bytes - min(len(cases) * reserved, max_bytes // 3), 0)
    waiting = len(opened)
    pictures = Pictures()
    console = Console(stderr=True)
    for case in track(cases, description="drawing", disable=not progress, transient=True, console=console):
        view = read_view(case, None if case in opened else 1, pictures.problems)
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
    _drop_to_fit(pictures, cases, opened, max_bytes)
    # The blocks are numbered in the order of the viewer.
    pictures.views = {case: pictures.views[case] for case in opened if case in pictures.views}
    pictures.volumes = {case: pictures.volumes[case] for case in pictures.views}
    return pictures


def evaluated_views(
    inputs: Sequence[Mapping[str, str]],
    images: Images,
    structures: Structures,
    label_values: Mapping[str, Sequence[int]],
) -> ReadView:
    """Return what reads the view of an evaluated case, for `draw_pictures`.

    Args:
        inputs: case, prediction and reference file of each case.
        images: the scans.
        structures: the meaning of the values in the label files.
        label_values: label values of each structure.
    """
    known = list(dict.fromkeys(value for values in label_values.values() for value in values if value != 0))
    by_case = {entry["case"]: entry for entry in inputs}
    return lambda case, max_channels, problems: _read_view(
        by_case[case], images, structures, known, problems, max_channels
    )


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
    """Crop a case to both masks with 20 mm around them, or keep the whole image if there is no label.

    Args:
        prediction, reference: integer label maps of the grid's shape.
        grid: grid of the label maps and images.
        images: name and array of each channel, of the same shape; consumed one at a time.
        modalities: channel name → modality; others are guessed from the values.
        has_patient: False if the affine says nothing about a patient.
        known: label values to show; None shows all.
    """
    box = union(grid.spatial_dims, (bounding_box(labels) for labels in (prediction, reference)))
    return cut_out(
        prediction, reference, grid, images, box, modalities=modalities, has_patient=has_patient, known=known
    )


def thumbnail(view: View, size: int = 160) -> str:
    """Draw a PNG of at most 30 kB in true proportions.

    Args:
        view: what to draw: the slice with most errors, cropped to the labels with 10 mm around them.
        size: longer side in pixels; halved until the PNG is small enough.

    Returns:
        The PNG in base64.
    """
    while True:
        png = _draw_thumbnail(view, size)
        if len(png) <= MAX_THUMBNAIL_BYTES or size <= 32:
            return base64.b64encode(png).decode("ascii")
        size = size * 3 // 4


def slice_with_most_errors(view: View, panel: Panel) -> int:
    """Return the position with most wrong voxels; without any, that with most labelled voxels, else the middle."""
    others = tuple(axis for axis in range(3) if axis != panel.axis)
    reference = _reference(view)
    for mask in (reference != view.prediction, reference != 0):
        counts = np.count_nonzero(mask, axis=others)
        if counts.any():
            return int(counts.argmax())
    return view.prediction.shape[panel.axis] // 2


def outline(labels: np.ndarray, width: int = 1) -> np.ndarray:
    """Return True at labelled pixels within `width` pixels of another label, the background or the border."""
    padded = np.pad(labels, width)
    rows, columns = labels.shape
    edges = np.zeros(labels.shape, dtype=bool)
    for step in range(1, width + 1):
        for down, right in ((-step, 0), (step, 0), (0, -step), (0, step)):
            side = padded[width + down : width + down + rows, width + right : width + right + columns]
            edges |= labels != side
    return edges & (labels != 0)


def _draw_thumbnail(view: View, size: int) -> bytes:
    panel = view.panels[0]
    position = slice_with_most_errors(view, panel)
    spacing = view.spacing
    crop = _around_labels(view, panel)

    def plane(volume: np.ndarray) -> np.ndarray:
        return panel.cut(volume, position)[crop]

    rows, columns = plane(view.prediction).shape
    height_mm, width_mm = rows * spacing[panel.down], columns * spacing[panel.across]
    scale = size / max(height_mm, width_mm)
    height, width = max(round(height_mm * scale), 1), max(round(width_mm * scale), 1)
    nearest = np.ix_(np.arange(height) * rows // height, np.arange(width) * columns // width)
    pixels = np.zeros((height, width), dtype=np.uint8)
    for channel in view.channels[:1]:
        shades = np.rint(channel.grey.shades(next(iter(channel.grey.windows))) * (_NUM_GREYS - 1)).astype(np.uint8)
        pixels = shades[plane(channel.levels)[nearest]]
    line = 2 if size >= THICK_OUTLINE_FROM else 1
    prediction = plane(view.prediction)[nearest]
    predicted = outline(prediction, line)
    if view.reference is None:
        colors = [rgb(color) for color in label_palette(len(view.values))][:_MAX_COLORS]
        pixels[predicted] = _NUM_GREYS + (prediction[predicted] - 1) % max(len(colors), 1)
        return _palette_png(pixels, colors)
    pixels[outline(plane(view.reference)[nearest], line)] = _NUM_GREYS
    across, down = np.indices(predicted.shape)
    pixels[predicted & ((across + down) % 8 < 4)] = _NUM_GREYS + 1
    return _palette_png(pixels, [REFERENCE_RGB, PREDICTION_RGB])


def _reference(view: View) -> np.ndarray:
    """Return the reference, or the prediction if there is none, so that nothing counts as an error."""
    return view.prediction if view.reference is None else view.reference


def _around_labels(view: View, panel: Panel) -> tuple[slice, slice]:
    """Return the rows and columns of a plane that hold any label, with 10 mm around them; all if there is none."""
    is_labelled = (view.prediction != 0) | (_reference(view) != 0)
    flat = panel.cut(is_labelled.any(axis=panel.axis, keepdims=True), 0)
    found = ndimage.find_objects(flat.astype(np.uint8))
    if not found:
        return slice(None), slice(None)
    margins = [math.ceil(THUMBNAIL_MARGIN_MM / view.spacing[axis]) for axis in (panel.down, panel.across)]
    rows, columns = (
        slice(max(side.start - margin, 0), side.stop + margin) for side, margin in zip(found[0], margins, strict=True)
    )
    return rows, columns


def _palette_png(pixels: np.ndarray, colors: Sequence[tuple[int, int, int]]) -> bytes:
    """Encode palette positions, greys and the colours of the outlines, as a PNG."""
    greys = [(round(255 * grey / (_NUM_GREYS - 1)),) * 3 for grey in range(_NUM_GREYS)]
    picture = Image.fromarray(pixels).convert("P")
    picture.putpalette([value for color in (*greys, *colors) for value in color])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=9)
    return buffer.getvalue()


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
        has_patient=suffix_of(reference_file) not in SUFFIXES_WITHOUT_PATIENT,
        known=known,
    )
    if left_out:
        problems[case] = "; ".join(left_out)
    return replace(view, notes=(*view.notes, *left_out))


def _drop_to_fit(pictures: Pictures, order: Sequence[str], opened: Sequence[str], max_bytes: int) -> None:
    """Drop thumbnails, then volumes, of the best cases until the pictures fit."""
    best_first = [case for case in reversed(order) if case not in opened] + [*reversed(opened)]
    for held in (pictures.thumbnails, pictures.volumes):
        for case in best_first:
            if pictures.num_bytes <= max_bytes:
                return
            held.pop(case, None)
            if held is pictures.volumes:
                pictures.views.pop(case, None)
