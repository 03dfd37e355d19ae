"""Draw elastic deformations: two published forms, one relative to the patch, and the affine part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from types import MappingProxyType
from typing import Literal

import numpy as np

from medseg.transforms.elastic.deformation import Basis, Deformation, Lattice, polynomials

PerAxis = float | Sequence[float]

_LARGEST_GRADIENT = 0.95  # a map can fold only where the gradient reaches 1
# Bernstein coefficients of 1, t, t**2, t**3 (columns) on [0, 1]
_BERNSTEIN_FROM_POWERS = np.array([[1, 0, 0, 0], [1, 1 / 3, 0, 0], [1, 2 / 3, 1 / 3, 0], [1, 1, 1, 1]])


@dataclass(frozen=True)
class ElasticForm:
    """Positions of the control points, and the distribution of their displacements.

    Attributes:
        basis: "bicubic" passes through the drawn values, "bspline" smooths them.
        grid: number of control points per axis, the outer two at the edges of the patch; None to use `grid_spacing`.
        grid_spacing: distance between control points, which are centred on the patch and cover it; in `unit`.
        sigma: standard deviation of every component, in `unit`.
        unit: "voxel", "mm", or "extent": a fraction of the patch's extent (`grid_spacing` is then in voxels).
        fold_free: shrink a draw whose map could fold until it provably cannot.
    """

    basis: Basis
    grid: int | Sequence[int] | None
    grid_spacing: PerAxis | None
    sigma: PerAxis
    unit: Literal["voxel", "mm", "extent"]
    fold_free: bool

    def __post_init__(self) -> None:
        if np.min(self.sigma) < 0:
            raise ValueError(f"elastic deformation: sigma must be >= 0, found {self.sigma}")
        if self.grid is not None and np.min(self.grid) < 2:
            raise ValueError(f"elastic deformation: grid must be at least 2 control points per axis, found {self.grid}")
        if self.grid_spacing is not None and np.min(self.grid_spacing) <= 0:
            raise ValueError(f"elastic deformation: grid_spacing must be > 0, found {self.grid_spacing}")


FORMS = MappingProxyType(
    {
        "relative": ElasticForm("bicubic", 3, None, 0.04, "extent", True),
        # "random displacement vectors on a coarse 3 by 3 grid … 10 pixels standard deviation … bicubic interpolation"
        "unet_ronneberger2015": ElasticForm("bicubic", 3, None, 10.0, "voxel", False),
        # "normal distribution with standard deviation of 4 in a grid with a spacing of 32 voxels in each direction …
        # B-spline interpolation"
        "unet3d_cicek2016": ElasticForm("bspline", None, 32.0, 4.0, "voxel", False),
    }
)


@dataclass(frozen=True)
class AffineRanges:
    """Ranges of the uniformly drawn rotation, scaling and flips."""

    rotation: PerAxis = 0.0
    """Largest angle in radians about each axis: one number, or three in 3D."""
    scale: PerAxis = 0.0
    """s for factors in [1 - s, 1 + s], or the lowest and highest factor; a factor above 1 magnifies."""
    flip: tuple[int, ...] = ()
    """Spatial axes that are mirrored with probability 1/2 each."""

    @property
    def scale_factors(self) -> tuple[float, float]:
        """The lowest and the highest factor."""
        if isinstance(self.scale, Sequence):
            low, high = self.scale
            return low, high
        return 1 - self.scale, 1 + self.scale

    def __post_init__(self) -> None:
        low, high = self.scale_factors
        if not 0 < low <= high:
            raise ValueError(
                f"elastic deformation: scale factors must be > 0 and ascending, found {(low, high)} from {self.scale}"
            )


def draw_deformation(
    random: np.random.RandomState,
    shape: Sequence[int],
    spacing_mm: np.ndarray,
    form: ElasticForm,
    affine: AffineRanges,
) -> Deformation:
    """Draw one deformation of a patch.

    Args:
        random: source of randomness.
        shape: spatial shape of the patch in voxels.
        spacing_mm: voxel size along each axis.
        form: distribution of the displacements.
        affine: ranges of rotation, scaling and flips.
    """
    extent = np.maximum(np.array(shape) - 1.0, 1.0)
    to_voxels = {"voxel": np.ones_like(extent), "mm": 1 / spacing_mm, "extent": extent}[form.unit]
    sigma = per_axis(form.sigma, len(shape), "sigma") * to_voxels
    if form.grid_spacing is not None:
        step = per_axis(form.grid_spacing, len(shape), "grid_spacing") * (to_voxels if form.unit == "mm" else 1.0)
        counts = np.ceil(extent / step - 1e-9).astype(int) + 3
        displacements = _draw_controls(random, counts, sigma)
    else:
        inner = per_axis(form.grid or 3, len(shape), "grid").astype(int)
        step, counts = extent / (inner - 1), inner + 2
        displacements = np.pad(  # beyond the edge the displacement is that at the edge
            _draw_controls(random, inner, sigma), [(0, 0)] + [(1, 1)] * len(shape), mode="edge"
        )
    origin = (extent - step * (counts - 1)) / 2
    lattices = tuple(Lattice(float(o), float(s), int(k)) for o, s, k in zip(origin, step, counts, strict=True))
    if form.fold_free:
        displacements = _without_folds(displacements, lattices, form.basis)
    matrix = _draw_matrix(random, spacing_mm, affine)
    return Deformation(tuple(int(n) for n in shape), form.basis, lattices, displacements, matrix)


def per_axis(value: PerAxis, count: int, name: str) -> np.ndarray:
    """Return one float per axis from one number for all axes or one per axis."""
    values = np.asarray(value, dtype=float)
    if values.ndim == 0:
        return np.full(count, float(values))
    if values.shape != (count,):
        raise ValueError(f"elastic deformation: {name} must be one number or {count} of them, found {value}")
    return values


def _draw_controls(random: np.random.RandomState, counts: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    return random.standard_normal((len(sigma), *counts)) * sigma.reshape(-1, *[1] * len(sigma))


def _draw_matrix(random: np.random.RandomState, spacing_mm: np.ndarray, affine: AffineRanges) -> np.ndarray:
    """Draw the matrix from output to input offsets from the centre, in voxels; rotations are rotations in mm."""
    ndim = len(spacing_mm)
    planes = [(0, 1)] if ndim == 2 else [(1, 2), (0, 2), (0, 1)]  # about axes 0, 1, 2
    matrix = np.eye(ndim)
    for (i, j), limit in zip(planes, per_axis(affine.rotation, len(planes), "rotation_range"), strict=True):
        angle = random.uniform(-limit, limit)
        rotation = np.eye(ndim)
        rotation[i, i] = rotation[j, j] = np.cos(angle)
        rotation[i, j], rotation[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ rotation
    matrix /= random.uniform(*affine.scale_factors)
    signs = np.ones(ndim)
    for axis in affine.flip:
        signs[axis] = random.choice([-1.0, 1.0])
    scaled: np.ndarray = matrix * spacing_mm * signs / spacing_mm[:, None]
    return scaled


def _without_folds(displacements: np.ndarray, lattices: tuple[Lattice, ...], basis: Basis) -> np.ndarray:
    """Shrink the displacements, if needed, until the map provably cannot fold."""
    bound = np.inf
    for pieces in (2, 3):  # the coarser bound is cheaper and usually sufficient
        bound = gradient_bound(displacements, lattices, basis, pieces)
        if bound <= _LARGEST_GRADIENT:
            return displacements
    return displacements * (_LARGEST_GRADIENT / bound)


def gradient_bound(displacements: np.ndarray, lattices: tuple[Lattice, ...], basis: Basis, pieces: int = 3) -> float:
    """Bound an operator norm of the displacement's gradient over the whole patch; dimensionless.

    If the bound is below 1, the map cannot fold: its Jacobian is positive everywhere, between the voxels too. The
    spline is bounded by its Bernstein coefficients on each piece of a lattice interval.

    Args:
        displacements: control values in voxels, shape `(ndim, K_1, …, K_ndim)`.
        lattices: positions of the control points in voxels, one lattice per axis.
        basis: the cubic basis.
        pieces: number of pieces per lattice interval. More pieces make the bound tighter and slower to compute.

    Returns:
        The largest value over all pieces of the smallest among the bounds of the row-sum, column-sum and Frobenius
        norms.
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
    """Compute matrices `(pieces, 4, 4)` from four control values to the Bernstein coefficients of each piece."""
    powers = polynomials(basis)  # of t on the whole interval; on a piece t = (piece + s) / pieces
    matrices = []
    for piece in range(pieces):
        shifted = np.array(
            [[comb(q, p) * piece ** (q - p) / pieces**q if q >= p else 0.0 for q in range(4)] for p in range(4)]
        )
        matrices.append(_BERNSTEIN_FROM_POWERS @ shifted @ powers)
    return np.stack(matrices)
