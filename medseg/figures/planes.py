"""The three middle planes of a volume, each turned the way radiologists look at it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from medseg.errors import GeometryError

# Rows go down and columns to the right on the screen; the patient's right is on the left, as if seen from the feet.
_PLANES = {
    "axial": (2, "L", "P"),
    "coronal": (1, "L", "I"),
    "sagittal": (0, "P", "I"),
}
_OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))


@dataclass(frozen=True)
class Plane:
    """One slice, ready to be drawn with its first row on top.

    Args:
        name: "axial", "coronal" or "sagittal".
        image: (rows, columns).
        labels: (rows, columns) integers.
        pixel_mm: (height, width) of a pixel.
        letters: what lies at the (left, right, top, bottom) edge.
        index: position of the slice along its axis, and that axis's size.
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
    orientation = io_orientation(affine)
    to_ras = ornt_transform(orientation, axcodes2ornt("RAS"))
    sizes = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)
    planes = []
    for name, (axis, right, down) in _PLANES.items():
        native = int(np.flatnonzero(to_ras[:, 0] == axis)[0])
        cut = [slice(None)] * 3
        cut[native] = middle[native]  # type: ignore[call-overload]
        rows, columns = _axis_towards(to_ras, down), _axis_towards(to_ras, right)
        planes.append(
            Plane(
                name,
                _turn(image[tuple(cut)], native, rows, columns),
                _turn(labels[tuple(cut)], native, rows, columns),
                (float(sizes[rows[0]]), float(sizes[columns[0]])),
                (_OPPOSITE[right], right, _OPPOSITE[down], down),
                (int(middle[native]), int(image.shape[native])),
            )
        )
    return planes


def labelled_center(labels: np.ndarray) -> tuple[int, ...]:
    """The labelled voxel nearest to the labels' middle; the volume's middle where nothing is labelled."""
    found = np.nonzero(labels)
    if not len(found[0]):
        return tuple(n // 2 for n in labels.shape)
    return tuple(int(np.median(axis)) for axis in found)


def _axis_towards(to_ras: np.ndarray, letter: str) -> tuple[int, bool]:
    """The native axis along a direction, and whether it must be flipped to grow towards it."""
    axis = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}[letter]
    native = int(np.flatnonzero(to_ras[:, 0] == axis)[0])
    grows_positive = to_ras[native, 1] > 0
    return native, grows_positive != (letter in "RAS")


def _turn(plane: np.ndarray, removed: int, rows: tuple[int, bool], columns: tuple[int, bool]) -> np.ndarray:
    if rows[0] > columns[0]:
        plane = plane.T
    if rows[1]:
        plane = plane[::-1]
    return plane[:, ::-1] if columns[1] else plane
