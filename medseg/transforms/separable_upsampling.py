"""Cubic bases on a uniform lattice: a small control grid becomes a dense field by one small matrix an axis.

A tensor-product spline is separable, so upsampling `(K, K, K)` control values to `(D, H, W)` samples is three matrix
products whose matrices `(D, K)`, `(H, K)`, `(W, K)` have four non-zeros a row. Both bases reproduce affine functions
exactly (sum of basis times control positions is the identity), which lets a rotation or a scaling ride along in the
control values at no cost.
"""

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
