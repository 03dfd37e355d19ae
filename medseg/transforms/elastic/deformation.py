"""The frozen record of one elastic deformation: everything that was drawn, nothing that depends on the image."""

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
    """Control positions `origin + step * index` along one axis, in voxels; one control lies beyond each end."""

    origin: float
    step: float
    count: int

    @property
    def positions(self) -> np.ndarray:
        """Voxel coordinates of the controls, shape `(count,)`."""
        return self.origin + self.step * np.arange(self.count)

    @property
    def num_intervals(self) -> int:
        """Intervals on which four controls are defined."""
        return self.count - 3


def polynomials(basis: Basis) -> np.ndarray:
    """The 4x4 power-basis matrix of a cubic basis (rows: powers of t, columns: the four controls)."""
    return _POLYNOMIALS[basis]


@lru_cache(maxsize=128)
def upsampling_matrix(basis: Basis, lattice: Lattice, num_samples: int) -> np.ndarray:
    """Matrix `(num_samples, lattice.count)` that evaluates the spline at voxels 0, 1, …, num_samples - 1.

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
    """One drawn map from output voxels to input voxels.

    `source(x) = centre + matrix @ (x + u(x) - centre)`, where `u` is the tensor-product cubic spline with control
    values `displacements` and `centre` the middle of the patch, all in voxels.

    Attributes:
        shape: spatial shape in voxels that the map was drawn for.
        basis: "bicubic" (interpolating, Keys 1981) or "bspline".
        lattices: positions of the controls, one lattice an axis.
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
        """One `(num_voxels, num_controls)` upsampling matrix an axis."""
        return [upsampling_matrix(self.basis, lattice, n) for lattice, n in zip(self.lattices, self.shape, strict=True)]

    def source_controls(self) -> np.ndarray:
        """Control values of the whole map `source`, affine part and identity included, shape `(K_1, …, ndim)`.

        The bases reproduce affine functions, so upsampling these gives absolute source coordinates: no identity grid
        is made or added, and rotation and scaling cost nothing at full resolution.
        """
        centre = (np.array(self.shape) - 1) / 2
        positions = np.stack(np.meshgrid(*[lattice.positions for lattice in self.lattices], indexing="ij"), axis=-1)
        moved = positions + np.moveaxis(self.displacements, 0, -1) - centre
        controls: np.ndarray = moved @ self.matrix.T + centre
        return controls

    def source_coordinates(self) -> np.ndarray:
        """The dense map in float64, shape `(*shape, ndim)`: for pictures and tests, never used to resample."""
        dense = self.source_controls()
        for axis, weights in enumerate(self.weights):
            dense = np.moveaxis(np.tensordot(weights, dense, axes=(1, axis)), 0, axis)
        return dense
