"""A proof, from its control values alone, that a spline displacement folds nothing.

x + u(x) cannot fold where an operator norm of the gradient of u stays below 1: I + grad u then has a positive
determinant, and where one such norm serves the whole patch the map is one-to-one. In Bernstein form a polynomial lies
within the hull of its coefficients, so the largest coefficient of each derivative bounds it everywhere in a cell, not
only at the voxels.
"""

from __future__ import annotations

from math import comb

import numpy as np

from medseg.transforms.separable_upsampling import Basis, Lattice, polynomials

# Bernstein coefficients of 1, t, t**2, t**3 (columns) on [0, 1]
_BERNSTEIN_FROM_POWERS = np.array([[1, 0, 0, 0], [1, 1 / 3, 0, 0], [1, 2 / 3, 1 / 3, 0], [1, 1, 1, 1]])


def gradient_bound(displacements: np.ndarray, lattices: tuple[Lattice, ...], basis: Basis, pieces: int = 3) -> float:
    """Upper bound, over the whole patch, of an operator norm of the displacement's gradient; dimensionless.

    Args:
        displacements: control values in voxels, shape `(ndim, K_1, …, K_ndim)`.
        lattices: positions of the controls in voxels, one lattice an axis.
        basis: the cubic basis.
        pieces: parts each lattice interval is cut into; more make the bound tighter and dearer.

    Returns:
        In each piece the smallest of the bounds of the row-sum, column-sum and Frobenius norms; the largest over all
        pieces.
    """
    ndim = len(lattices)
    cut = _bernstein_of_pieces(basis, pieces)
    coefficients = displacements
    for axis, lattice in enumerate(lattices, start=1):
        windows = np.lib.stride_tricks.sliding_window_view(coefficients, 4, axis=axis)
        parts = np.moveaxis(np.tensordot(windows, cut, axes=(-1, -1)), -2, axis + 1)  # …, interval, piece, …, 4
        coefficients = parts.reshape(*parts.shape[:axis], lattice.num_intervals * pieces, *parts.shape[axis + 2 :])
    # (ndim, pieces_1, …, pieces_ndim, 4, …, 4): the last axes are the coefficients within a piece
    slopes = np.empty((ndim, ndim, *coefficients.shape[1 : ndim + 1]))
    within = tuple(range(ndim + 1, 2 * ndim + 1))
    for axis, lattice in enumerate(lattices):
        derivative = 3 * np.diff(coefficients, axis=ndim + 1 + axis) * (pieces / lattice.step)
        slopes[:, axis] = np.abs(derivative, out=derivative).max(axis=within)
    row_sum, column_sum = slopes.sum(axis=1).max(axis=0), slopes.sum(axis=0).max(axis=0)
    frobenius = np.sqrt((slopes**2).sum(axis=(0, 1)))
    return float(np.minimum(np.minimum(row_sum, column_sum), frobenius).max())


def _bernstein_of_pieces(basis: Basis, pieces: int) -> np.ndarray:
    """Bernstein coefficients of each part of an interval from its four controls, shape `(pieces, 4, 4)`."""
    powers = polynomials(basis)  # of t on the whole interval; t = (piece + s) / pieces on a part
    matrices = []
    for piece in range(pieces):
        shifted = np.array(
            [[comb(q, p) * piece ** (q - p) / pieces**q if q >= p else 0.0 for q in range(4)] for p in range(4)]
        )
        matrices.append(_BERNSTEIN_FROM_POWERS @ shifted @ powers)
    return np.stack(matrices)
