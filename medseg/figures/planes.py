"""The three middle planes of a volume, each turned the way radiologists look at it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medseg.errors import GeometryError
from medseg.figures.panels import PATIENT_PANELS, PatientFrame
from medseg.volumes import Grid


@dataclass(frozen=True)
class Plane:
    """One slice, ready to be drawn with its first row on top.

    Args:
        name: "axial", "coronal" or "sagittal".
        image: (rows, columns).
        labels: (rows, columns) integers.
        pixel_mm: (height, width) of a pixel.
        letters: what lies at the (left, right, top, bottom) edge.
        index: position of the slice towards right, anterior or superior as in the viewer, and that axis's size.
    """

    name: str
    image: np.ndarray
    labels: np.ndarray
    pixel_mm: tuple[float, float]
    letters: tuple[str, str, str, str]
    index: tuple[int, int]


def cut_planes(
    image: np.ndarray, labels: np.ndarray, affine: np.ndarray, center: tuple[int, ...] | None = None
) -> list[Plane]:
    """Cut the axial, coronal and sagittal planes of a volume through one voxel.

    Args:
        image: (i, j, k).
        labels: integers of the same shape.
        affine: 4×4, voxel index to mm (RAS+).
        center: the voxel; by default the middle of the labelled voxels, or of the volume where there are none.

    Raises:
        GeometryError: the shapes differ or are not three-dimensional.
    """
    if image.shape != labels.shape or image.ndim != 3:
        raise GeometryError(f"image {image.shape} and labels {labels.shape} must have one three-dimensional shape")
    middle = labelled_center(labels) if center is None else center
    grid = Grid(image.shape, affine)
    frame = PatientFrame(grid)
    turned, turned_labels, spacing = frame.turned(image), frame.turned(labels), frame.spacing
    place = np.rint(np.linalg.solve(frame.affine, grid.affine @ [*middle, 1])).astype(int)
    return [
        Plane(
            panel.name,
            panel.cut(turned, int(place[panel.axis])),
            panel.cut(turned_labels, int(place[panel.axis])),
            (spacing[panel.down], spacing[panel.across]),
            panel.letters,
            (int(place[panel.axis]), turned.shape[panel.axis]),
        )
        for panel in PATIENT_PANELS
    ]


def labelled_center(labels: np.ndarray) -> tuple[int, ...]:
    """The labelled voxel nearest to the labels' middle; the volume's middle where nothing is labelled."""
    found = np.nonzero(labels)
    if not len(found[0]):
        return tuple(n // 2 for n in labels.shape)
    return tuple(int(np.median(axis)) for axis in found)
