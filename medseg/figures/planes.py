"""Planes of a volume in radiological convention, from axes of any order and direction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from nibabel.affines import obliquity
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from medseg.errors import GeometryError
from medseg.volumes import Grid


@dataclass(frozen=True)
class Panel:
    """Layout of one plane on the screen, in radiological convention.

    Args:
        name: "axial", "coronal", "sagittal", or "image" for an image without a patient.
        axis: axis of the volume that is perpendicular to the plane.
        across, down: axes shown to the right and downwards.
        flip_across, flip_down: True if positions are shown in decreasing order.
        letters: side of the patient at the (left, right, top, bottom) edge; empty strings if unknown.
    """

    name: str
    axis: int
    across: int
    down: int
    flip_across: bool
    flip_down: bool
    letters: tuple[str, str, str, str]

    def cut(self, volume: np.ndarray, position: int) -> np.ndarray:
        """Cut the plane at a position out of a volume, as rows from top to bottom."""
        plane = np.take(volume, position, axis=self.axis)
        rows = plane.T if self.across < self.down else plane
        return rows[:: -1 if self.flip_down else 1, :: -1 if self.flip_across else 1]


# In RAS axes: the patient's right is on the left of the screen, front and head are on top.
PATIENT_PANELS = (
    Panel("axial", 2, 0, 1, True, True, ("R", "L", "A", "P")),
    Panel("coronal", 1, 0, 2, True, True, ("R", "L", "S", "I")),
    Panel("sagittal", 0, 1, 2, True, True, ("A", "P", "S", "I")),
)
PLAIN_PANEL = Panel("image", 2, 0, 1, False, False, ("", "", "", ""))


@dataclass(frozen=True, eq=False)
class PatientFrame:
    """Convert a file's axes to the page's axes (x, y, z), the ones nearest to right, anterior and superior.

    Args:
        grid: grid of the file.
        has_patient: False if the affine says nothing about a patient, as for PNG and TIFF; axes then stay as stored.
    """

    grid: Grid
    has_patient: bool = True

    @cached_property
    def _turn(self) -> np.ndarray:
        return io_orientation(self.grid.affine) if self.has_patient else np.array([[0, 1], [1, 1], [2, 1]])

    @property
    def _shape(self) -> tuple[int, ...]:
        return self.grid.shape + (1,) * (3 - self.grid.spatial_dims)

    def turned(self, array: np.ndarray) -> np.ndarray:
        """Return the array along the page's axes, as a view."""
        return apply_orientation(array.reshape(self._shape), self._turn)

    def turned_steps(self, steps: Sequence[int]) -> tuple[int, ...]:
        """Reorder steps along the file's axes to the page's axes."""
        padded = (*steps, *[1] * (3 - len(steps)))
        result = [1, 1, 1]
        for native, (axis, _) in enumerate(self._turn):
            result[int(axis)] = padded[native]
        return tuple(result)

    @property
    def affine(self) -> np.ndarray:
        """4×4 matrix from the index along the page's axes to mm (RAS+)."""
        return self.grid.affine @ inv_ornt_aff(self._turn, self._shape)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size along the page's axes in mm."""
        x, y, z = (float(step) for step in np.linalg.norm(self.affine[:3, :3], axis=0))
        return x, y, z

    @property
    def panels(self) -> tuple[Panel, ...]:
        """The planes to show; a plane needs more than one voxel in both directions.

        These are three for a volume, and one for a single slice or an image without a patient.
        """
        if not self.has_patient:
            return (PLAIN_PANEL,)
        shape = self.turned(np.broadcast_to(np.zeros((), np.uint8), self.grid.shape)).shape
        shown = tuple(p for p in PATIENT_PANELS if shape[p.across] > 1 and shape[p.down] > 1)
        return shown or PATIENT_PANELS[:1]

    @property
    def tilt_degrees(self) -> float:
        """Largest angle between an axis and the patient's axis it is shown as, in degrees; 0 for a straight grid."""
        if not (self.has_patient and self.grid.is_oblique):
            return 0.0
        return math.degrees(float(np.max(obliquity(self.grid.affine))))


@dataclass(frozen=True)
class Plane:
    """One slice to draw, with its first row on top.

    Args:
        name: "axial", "coronal" or "sagittal".
        image: (rows, columns).
        labels: (rows, columns) integers.
        pixel_mm: (height, width) of a pixel.
        letters: side of the patient at the (left, right, top, bottom) edge.
        index: position of the slice towards right, anterior or superior, and the number of slices.
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
        center: the voxel; by default `labelled_center(labels)`.

    Raises:
        GeometryError: the shapes differ or are not three-dimensional.
    """
    if image.shape != labels.shape or image.ndim != 3:
        raise GeometryError(f"image and labels must have one 3D shape, found {image.shape} and {labels.shape}")
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
    """Return the voxel at the median position of the labelled voxels, or the middle of a volume without labels."""
    found = np.nonzero(labels)
    if not len(found[0]):
        return tuple(n // 2 for n in labels.shape)
    return tuple(int(np.median(axis)) for axis in found)


def check_one_shape(**arrays: np.ndarray) -> None:
    """Check that all arrays have one 2D or 3D shape.

    Raises:
        GeometryError: the shapes differ, or are neither 2D nor 3D.
    """
    shapes = {name: np.shape(array) for name, array in arrays.items()}
    first = next(iter(shapes.values()))
    if len(first) not in (2, 3) or set(shapes.values()) != {first}:
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise GeometryError(f"a picture needs arrays of one 2D or 3D shape, found {found}")


def fullest_slice(amount: np.ndarray) -> int:
    """Return the index along the third axis of the slice with the largest sum; the middle if all are equal.

    Args:
        amount: (i, j, k).
    """
    sums = np.asarray(amount, dtype=np.float64).sum((0, 1))
    return int(sums.argmax()) if np.ptp(sums) > 0 else len(sums) // 2


def take_slice(array: np.ndarray, index: int) -> np.ndarray:
    """Return a 2D array itself, or a slice of a 3D array along the third axis, shape (i, j)."""
    return array if array.ndim == 2 else array[:, :, index]


def pixel_aspect(spacing: Sequence[float] | None) -> float:
    """Return height over width of a pixel (i, j); 1 if the spacing is unknown."""
    return 1.0 if spacing is None else float(spacing[0]) / float(spacing[1])
