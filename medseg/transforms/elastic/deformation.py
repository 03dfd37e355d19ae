"""Record of one elastic deformation: the drawn values, and the splines that turn them into a dense map."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np

Basis = Literal["bicubic", "bspline"]

# Row p holds the coefficients of t**p of the four basis functions on one interval, t in [0, 1].
_POLYNOMIALS = {
    # Keys 1981, a = -1/2: interpolates the control values (Catmull-Rom); what image libraries call bicubic
    "bicubic": np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]]) / 2,
    # uniform cubic B-spline: approximates the control values, twice continuously differentiable
    "bspline": np.array([[1, 4, 1, 0], [-3, 0, 3, 0], [3, -6, 3, 0], [-1, 3, -3, 1]]) / 6,
}


@dataclass(frozen=True)
class Lattice:
    """Positions `origin + step * index` of the control points along one axis, in voxels.

    The first and the last control point lie outside the patch.
    """

    origin: float
    step: float
    count: int

    @property
    def positions(self) -> np.ndarray:
        """Voxel coordinates of the control points, shape `(count,)`."""
        return self.origin + self.step * np.arange(self.count)

    @property
    def num_intervals(self) -> int:
        """The number of intervals that have four control points around them."""
        return self.count - 3


def polynomials(basis: Basis) -> np.ndarray:
    """Return the 4x4 power-basis matrix of a cubic basis (rows: powers of t, columns: the four control points)."""
    return _POLYNOMIALS[basis]


@lru_cache(maxsize=128)
def upsampling_matrix(basis: Basis, lattice: Lattice, num_samples: int) -> np.ndarray:
    """Compute the matrix `(num_samples, lattice.count)` that evaluates the spline at voxels 0 … num_samples - 1.

    Samples beyond the last interval continue its polynomial. The result is cached and read-only.
    """
    position = (np.arange(num_samples) - lattice.origin) / lattice.step  # in control units
    interval = np.clip(np.floor(position).astype(int), 1, lattice.num_intervals)
    powers = (position - interval)[:, None] ** np.arange(4)
    matrix = np.zeros((num_samples, lattice.count))
    matrix[np.arange(num_samples)[:, None], (interval - 1)[:, None] + np.arange(4)] = powers @ _POLYNOMIALS[basis]
    matrix.setflags(write=False)
    return matrix


@dataclass(frozen=True, eq=False)
class Deformation:
    """Drawn map from output voxels to input voxels; frozen, and independent of the image.

    `source(x) = centre + matrix @ (x + u(x) - centre)`, where `u` is the tensor-product cubic spline with control
    values `displacements` and `centre` the middle of the patch, all in voxels.

    Attributes:
        shape: spatial shape in voxels that the map was drawn for.
        basis: "bicubic" (interpolating, Keys 1981) or "bspline".
        lattices: positions of the control points, one lattice per axis.
        displacements: control values in voxels, shape `(ndim, K_1, …, K_ndim)`.
        matrix: rotation, scaling and flips as one matrix in voxel units, shape `(ndim, ndim)`.
    """

    shape: tuple[int, ...]
    basis: Basis
    lattices: tuple[Lattice, ...]
    displacements: np.ndarray
    matrix: np.ndarray

    @property
    def weights(self) -> list[np.ndarray]:
        """One `(num_voxels, num_controls)` upsampling matrix per axis."""
        return [upsampling_matrix(self.basis, lattice, n) for lattice, n in zip(self.lattices, self.shape, strict=True)]

    def source_controls(self) -> np.ndarray:
        """Compute control values of the whole map, affine part and identity included, shape `(K_1, …, ndim)`.

        Both bases reproduce affine functions. Upsampling these values therefore gives absolute source coordinates,
        without an identity grid and without a rotation or scaling at full resolution.
        """
        centre = (np.array(self.shape) - 1) / 2
        positions = np.stack(np.meshgrid(*[lattice.positions for lattice in self.lattices], indexing="ij"), axis=-1)
        moved = positions + np.moveaxis(self.displacements, 0, -1) - centre
        controls: np.ndarray = moved @ self.matrix.T + centre
        return controls

    def source_coordinates(self) -> np.ndarray:
        """Compute the dense map in float64, shape `(*shape, ndim)`, for pictures and tests; never used to resample."""
        dense = self.source_controls()
        for axis, weights in enumerate(self.weights):
            dense = np.moveaxis(np.tensordot(weights, dense, axes=(1, axis)), 0, axis)
        return dense
