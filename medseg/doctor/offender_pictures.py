"""Draw the scan and the label map of a case that a finding is about."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from medseg.datasets.case_facts import CaseFacts, FileFacts, same_voxels_on
from medseg.datasets.measure_case import read_image_file, read_label_file
from medseg.doctor.findings import DatasetFacts, Finding
from medseg.errors import MedsegError
from medseg.figures.canvas import OKABE_ITO, rgb
from medseg.figures.grey_levels import grey_levels
from medseg.figures.planes import Panel, PatientFrame, labelled_center
from medseg.reporting.pictures import outline
from medseg.volumes import Volume

# Height of a plane in pixels; wide planes become lower, so that three of them fit into a card.
HEIGHT, MAX_WIDTH, GAP = 150, 190, 6
# Radius of the ring around the voxel of a finding.
RING = 11
NON_FINITE_RGB = (213, 94, 0)
RING_RGB = (255, 255, 255)
# Colours of a picture: so many greys, then labels, voxels that are not finite, and the ring with its border.
NUM_GREYS = 240
LABEL_RGB = tuple(rgb(color) for color in OKABE_ITO)
PALETTE = [(round(255 * grey / (NUM_GREYS - 1)),) * 3 for grey in range(NUM_GREYS)]
PALETTE += [*LABEL_RGB, NON_FINITE_RGB, RING_RGB, (0, 0, 0)]
FIRST_LABEL, NON_FINITE = NUM_GREYS, NUM_GREYS + len(LABEL_RGB)
RING_COLOR, RING_BORDER = NON_FINITE + 1, NON_FINITE + 2
# Cases of one finding that are drawn.
MAX_CASES = 2
COLORS = 512
FORMATS_WITHOUT_PATIENT = ("png", "tiff", "jpeg")


@dataclass(frozen=True)
class Picture:
    """One picture for a finding.

    Args:
        png: the picture.
        caption: what it shows.
    """

    png: bytes
    caption: str


class PictureBook:
    """Draw pictures of findings, each case read once per finding.

    Args:
        dataset: the facts; their files are read again.
    """

    def __init__(self, dataset: DatasetFacts) -> None:
        self._dataset = dataset

    def draw(self, finding: Finding) -> list[Picture]:
        """Draw the cases of a finding; a case that cannot be read has no picture."""
        pictures = []
        for case in finding.cases[:MAX_CASES]:
            with suppress(MedsegError, OSError, ValueError):
                pictures += self._draw_case(case, finding)
        return pictures

    def _draw_case(self, case: str, finding: Finding) -> list[Picture]:
        facts = self._dataset.cases.get(case)
        if facts is None:
            return []
        image, image_facts = self._image(facts, finding)
        label, label_facts = self._label(facts)
        if image is None and label is None:
            return []
        if image is None:
            assert label is not None
            image = replace(label, array=np.zeros(label.array.shape, np.uint8))
        several = len(finding.cases) > 1
        at = self._position(finding, facts, image, label)
        if label is None or label_facts is None or image_facts is None or finding.rule != "grid":
            return [Picture(_draw(image, label, at, bool(finding.at), self._modality()), case if several else "")]
        pictures = [Picture(_draw(image, label, at, False, self._modality()), "where the headers put the label map")]
        if same_voxels_on(label_facts, image_facts) is None and label.array.shape == image.array.shape:
            moved = replace(label, grid=image.grid)
            picture = _draw(image, moved, labelled_center(label.array), False, self._modality())
            pictures.append(Picture(picture, "voxel by voxel, without the headers"))
        return pictures

    def _modality(self) -> str:
        return self._dataset.manifest.channels[0].modality

    def _image(self, facts: CaseFacts, finding: Finding) -> tuple[Volume | None, FileFacts | None]:
        """Read the image that the finding is about, else the first one."""
        files = [file for file in facts.images if file.is_readable]
        files.sort(key=lambda file: file.path != finding.file)
        return (self._read(files[0]), files[0]) if files else (None, None)

    def _label(self, facts: CaseFacts) -> tuple[Volume | None, FileFacts | None]:
        if facts.label is None or not facts.label.is_readable:
            return None, None
        volume = read_label_file(self._dataset.manifest, Path(self._dataset.root, facts.label.path), "label")
        array = np.nan_to_num(volume.array) if volume.array.dtype.kind == "f" else volume.array
        return replace(volume, array=np.ceil(array).astype(np.int64)), facts.label

    def _read(self, file: FileFacts) -> Volume:
        manifest = self._dataset.manifest
        volumes = read_image_file(manifest, Path(self._dataset.root, file.path))
        return volumes[file.channel if manifest.has_channels_in_one_file else 0]

    def _position(self, finding: Finding, facts: CaseFacts, image: Volume, label: Volume | None) -> tuple[float, ...]:
        """Return the voxel of the image that the planes go through."""
        if finding.at:
            file = next((file for file in facts.files if file.path == finding.file), None)
            if file is not None and file.affine:
                return _moved(finding.at, np.array(file.affine), image)
        if label is not None and label.array.any():
            return _moved(labelled_center(label.array), label.grid.affine, image)
        return tuple((size - 1) / 2 for size in image.array.shape)


def _moved(voxel: tuple[int, ...], affine: np.ndarray, image: Volume) -> tuple[float, ...]:
    """Return the nearest voxel of an image to a voxel of another file, inside the image."""
    index = np.array([*voxel, *[0] * (3 - len(voxel)), 1.0])
    target = np.linalg.solve(image.grid.affine, affine @ index)
    shape = image.array.shape
    return tuple(float(np.clip(target[axis], 0, size - 1)) for axis, size in enumerate(shape))


def _draw(image: Volume, label: Volume | None, at: tuple[float, ...], has_ring: bool, modality: str) -> bytes:
    """Draw the planes through a voxel side by side, with the outlines of the labels, as a PNG."""
    frame = PatientFrame(image.grid, has_patient=image.format not in FORMATS_WITHOUT_PATIENT)
    volume = frame.turned(image.array)
    low, high = grey_levels(np.nan_to_num(image.array), modality or None).limits
    inverse = np.linalg.inv(frame.affine)
    center = (inverse @ image.grid.affine @ np.array([*at, *[0.0] * (3 - len(at)), 1.0]))[:3]
    tiles = []
    for panel in frame.panels:
        position = int(np.clip(round(center[panel.axis]), 0, volume.shape[panel.axis] - 1))
        grey = panel.cut(volume, position)
        labels = None if label is None else _labels_on(panel, position, volume.shape, frame, label)
        mark = _mark(panel, center, volume.shape) if has_ring else None
        tiles.append(_tile(grey, labels, (low, high), (frame.spacing[panel.down], frame.spacing[panel.across]), mark))
    canvas = Image.new("L", (sum(tile.width for tile in tiles) + GAP * (len(tiles) - 1), HEIGHT))
    left = 0
    for tile in tiles:
        canvas.paste(tile, (left, (HEIGHT - tile.height) // 2))
        left += tile.width + GAP
    colored = Image.fromarray(np.asarray(canvas), "P")
    colored.putpalette([value for color in PALETTE for value in color])
    buffer = io.BytesIO()
    colored.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _labels_on(panel: Panel, position: int, shape: tuple[int, ...], frame: PatientFrame, label: Volume) -> np.ndarray:
    """Return the label at each pixel of a plane of the image, by the affines of both; 0 outside of the label map."""
    index = np.zeros((4, *shape[: panel.axis], 1, *shape[panel.axis + 1 :]), dtype=np.float64)
    for axis in range(3):
        size = [1, 1, 1]
        size[axis] = index.shape[axis + 1]
        index[axis] = (np.array([float(position)]) if axis == panel.axis else np.arange(float(shape[axis]))).reshape(
            size
        )
    index[3] = 1.0
    to_label = np.linalg.inv(label.grid.affine) @ frame.affine
    voxel = np.rint(np.tensordot(to_label, index, axes=1)[:3]).astype(np.int64)
    array = label.array.reshape(label.array.shape + (1,) * (3 - label.array.ndim))
    inside = np.ones(voxel.shape[1:], dtype=bool)
    for axis in range(3):
        inside &= (voxel[axis] >= 0) & (voxel[axis] < array.shape[axis])
    found = np.where(inside, array[tuple(np.where(inside, voxel[axis], 0) for axis in range(3))], 0)
    return panel.cut(found, 0)


def _mark(panel: Panel, center: np.ndarray, shape: tuple[int, ...]) -> tuple[float, float]:
    """Return row and column of the centre in a plane."""
    row, column = float(center[panel.down]), float(center[panel.across])
    return (
        shape[panel.down] - 1 - row if panel.flip_down else row,
        shape[panel.across] - 1 - column if panel.flip_across else column,
    )


def _tile(
    grey: np.ndarray,
    labels: np.ndarray | None,
    limits: tuple[float, float],
    pixel_mm: tuple[float, float],
    mark: tuple[float, float] | None,
) -> Image.Image:
    """Return one plane with true proportions, as positions in the palette."""
    rows, columns = grey.shape
    height_mm, width_mm = rows * pixel_mm[0], columns * pixel_mm[1]
    scale = min(HEIGHT / height_mm, MAX_WIDTH / width_mm)
    height, width = max(round(height_mm * scale), 1), max(round(width_mm * scale), 1)
    nearest = np.ix_(np.arange(height) * rows // height, np.arange(width) * columns // width)
    values = grey[nearest].astype(np.float64)
    shades = np.clip((np.nan_to_num(values) - limits[0]) / max(limits[1] - limits[0], 1e-12), 0, 1)
    pixels = np.rint((NUM_GREYS - 1) * shades).astype(np.uint8)
    pixels[~np.isfinite(values)] = NON_FINITE
    if labels is not None:
        drawn = labels[nearest]
        edges = outline(drawn)
        pixels[edges] = FIRST_LABEL + (drawn[edges] - 1) % len(LABEL_RGB)
    picture = Image.fromarray(pixels)
    if mark is not None:
        y, x = (mark[0] + 0.5) * height / rows, (mark[1] + 0.5) * width / columns
        box = (x - RING, y - RING, x + RING, y + RING)
        pen = ImageDraw.Draw(picture)
        pen.ellipse(box, outline=RING_BORDER, width=4)
        pen.ellipse(box, outline=RING_COLOR, width=2)
    return picture


def describe(finding: Finding, facts: Mapping[str, CaseFacts]) -> str:
    """Return the alternative text of a finding's picture."""
    size = next((file.shape for case in finding.cases[:1] for file in facts[case].images if file.shape), ())
    return f"{finding.subject}, {' × '.join(map(str, size))} voxels: {finding.found}"
