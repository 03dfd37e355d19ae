"""The frozen record of one elastic deformation: everything that was drawn, nothing that depends on the image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medseg.transforms.separable_upsampling import Basis, Lattice, upsampling_matrix


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
