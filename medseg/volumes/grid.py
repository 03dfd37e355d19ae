"""Describe the grid of an image: its number of voxels, and the position of each of them in the patient."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from nibabel.affines import obliquity
from nibabel.orientations import aff2axcodes, apply_orientation, inv_ornt_aff, io_orientation, ornt_transform

from medseg.errors import GeometryError

# A quaternion stored as float32 (NIfTI's qform) rotates a straight grid by up to about 3e-4 rad; a real tilt is larger.
OBLIQUE_RAD = 1e-3
# Volume of one voxel relative to a box with the same edges. Below this value two axes are parallel.
SINGULAR_RATIO = 1e-6


@dataclass(frozen=True, eq=False)
class Grid:
    """Shape and affine of an image in the axis order of its file. Immutable and hashable.

    Args:
        shape: spatial sizes in voxels along the file's axes (i, j) or (i, j, k), each at least 1.
        affine: 4×4, voxel index → RAS+ millimetres (nibabel's convention). Two-dimensional grids use it with k = 0.

    Raises:
        GeometryError: a size below 1, an affine that is not 4×4, not finite, singular, or with a last row other
            than 0 0 0 1.
    """

    shape: tuple[int, ...]
    affine: np.ndarray

    def __post_init__(self) -> None:
        shape = tuple(int(size) for size in self.shape)
        if len(shape) not in (2, 3) or min(shape) < 1:
            raise GeometryError(f"a grid needs 2 or 3 sizes of at least 1 voxel, found shape {shape}")
        affine = np.array(self.affine, dtype=np.float64)
        _check_affine(affine)
        affine.flags.writeable = False
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Grid):
            return NotImplemented
        return self.shape == other.shape and np.array_equal(self.affine, other.affine)

    def __hash__(self) -> int:
        return hash((self.shape, self.affine.tobytes()))

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return len(self.shape)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance between the centres of neighbouring voxels along each axis, in mm."""
        lengths = np.linalg.norm(self.affine[:3, : self.spatial_dims], axis=0)
        return tuple(float(length) for length in lengths)

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel in mm³. In two dimensions a pixel is taken to be as thick as the affine's k axis."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def orientation(self) -> str:
        """Direction of each axis, such as "RAS" or "LPI"; two letters in two dimensions."""
        return "".join(aff2axcodes(self.affine))[: self.spatial_dims]

    @property
    def is_oblique(self) -> bool:
        """True if an axis is rotated away from the patient's axes by more than 0.06 degrees."""
        return bool(np.max(obliquity(self.affine)) > OBLIQUE_RAD)

    def corners_mm(self) -> np.ndarray:
        """Return the world coordinates (2^spatial_dims, 3) of the outer corners, at voxel index −½ and n − ½."""
        ends = [(-0.5, size - 0.5) for size in self.shape] + [(0.0,)] * (3 - self.spatial_dims)
        index = np.array(list(product(*ends)))
        return index @ self.affine[:3, :3].T + self.affine[:3, 3]

    def displacement_mm(self, other: Grid) -> float:
        """Return the largest distance between an outer corner of this grid and the same corner of the other, in mm.

        No voxel is displaced by more than this, whether the grids differ by a shift, a rotation, a flip or the spacing.

        Raises:
            GeometryError: one grid has two axes and the other three.
        """
        if self.spatial_dims != other.spatial_dims:
            raise GeometryError(f"a {self.spatial_dims}D grid cannot be compared with a {other.spatial_dims}D grid")
        return float(np.linalg.norm(self.corners_mm() - other.corners_mm(), axis=1).max())

    def difference(self, reference: Grid, name: object = "the reference") -> str:
        """Describe how this grid differs from a reference grid by more than half a voxel.

        Args:
            reference: the grid to compare with. Half its smallest spacing is the tolerance.
            name: how to call the reference in the description.

        Returns:
            One line for an error message, or an empty string if the shapes are equal and no voxel is displaced by more
            than the tolerance.
        """
        if self.shape != reference.shape:
            return f"shape {self.shape} differs from {reference.shape} of {name}; resample it onto that grid"
        moved_mm, limit_mm = self.displacement_mm(reference), min(reference.spacing) / 2
        if moved_mm <= limit_mm:
            return ""
        return (
            f"its corners lie up to {moved_mm:.3g} mm from those of {name}; the limit is half a voxel, {limit_mm:.3g} "
            "mm; resample it onto that grid or correct its header"
        )


def reorder(array: np.ndarray, grid: Grid, target: Grid) -> tuple[np.ndarray, Grid]:
    """Store an array in the axis order and directions of another grid, without interpolation.

    Args:
        array: shape of `grid`.
        grid: grid of the array.
        target: grid whose axes are taken over.

    Returns:
        The array, a view, and its grid. Every voxel keeps its place in mm. Both are returned as they are if the grids
        match already, or if one of them is two-dimensional.
    """
    if grid.spatial_dims != 3 or target.spatial_dims != 3 or not grid.difference(target):
        return array, grid
    turn = ornt_transform(io_orientation(grid.affine), io_orientation(target.affine))
    turned = apply_orientation(array, turn)
    return turned, Grid(turned.shape, grid.affine @ inv_ornt_aff(turn, grid.shape))


def _check_affine(affine: np.ndarray) -> None:
    if affine.shape != (4, 4):
        raise GeometryError(f"the affine must be 4×4, found shape {affine.shape}")
    if not np.isfinite(affine).all():
        raise GeometryError(f"the affine must be finite, found {_rows(affine)}; correct the header")
    if not np.array_equal(affine[3], (0, 0, 0, 1)):
        raise GeometryError(f"the affine's last row must be 0 0 0 1, found {affine[3].tolist()}; correct the header")
    # Divide by the spacing first, so that very small or large units neither look singular nor overflow.
    largest = np.abs(affine[:3, :3]).max(axis=0)
    if largest.min() > 0:
        directions = affine[:3, :3] / largest
        directions = directions / np.linalg.norm(directions, axis=0)
        if abs(np.linalg.det(directions)) > SINGULAR_RATIO:
            return
    raise GeometryError(
        f"the affine is singular (several voxels have one position): {_rows(affine)}; correct the header"
    )


def _rows(affine: np.ndarray) -> str:
    return "; ".join(" ".join(f"{value:g}" for value in row) for row in affine[:3])
