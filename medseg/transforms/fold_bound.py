"""A proof, from its control values alone, that a spline displacement folds nothing.

x + u(x) cannot fold where an operator norm of the gradient of u stays below 1: I + grad u then has a positive
determinant, and where one such norm serves the whole patch the map is one-to-one. In Bernstein form a polynomial lies
within the hull of its coefficients, so the largest coefficient of each derivative bounds it everywhere in a cell, not
only at the voxels.
"""

from __future__ import annotations

import numpy as np

from medseg.transforms.separable_upsampling import Basis, Lattice, polynomials

# Bernstein coefficients of 1, t, t**2, t**3 (columns) on [0, 1]
_BERNSTEIN_FROM_POWERS = np.array([[1, 0, 0, 0], [1, 1 / 3, 0, 0], [1, 2 / 3, 1 / 3, 0], [1, 1, 1, 1]])


def gradient_bound(displacements: np.ndarray, lattices: tuple[Lattice, ...], basis: Basis) -> float:
    """Upper bound, over the whole patch, of an operator norm of the displacement's gradient; dimensionless.

    Args:
        displacements: control values in voxels, shape `(ndim, K_1, …, K_ndim)`.
        lattices: positions of the controls in voxels, one lattice an axis.
        basis: the cubic basis.

    Returns:
        In each lattice cell the smaller of the bounds of the row-sum and column-sum norms; the largest over the cells.
    """
    ndim = len(lattices)
    to_bernstein = _BERNSTEIN_FROM_POWERS @ polynomials(basis)
    coefficients = displacements
    for axis in range(1, ndim + 1):
        coefficients = np.lib.stride_tricks.sliding_window_view(coefficients, 4, axis=axis) @ to_bernstein.T
    # (ndim, cells_1, …, cells_ndim, 4, …, 4): the last axes are the coefficients within a cell
    slopes = np.empty((ndim, ndim, *coefficients.shape[1 : ndim + 1]))
    within = tuple(range(ndim + 1, 2 * ndim + 1))
    for axis, lattice in enumerate(lattices):
        derivative = 3 * np.diff(coefficients, axis=ndim + 1 + axis) / lattice.step
        slopes[:, axis] = np.abs(derivative).max(axis=within)
    norms = np.minimum(slopes.sum(axis=1).max(axis=0), slopes.sum(axis=0).max(axis=0))
    return float(norms.max())
