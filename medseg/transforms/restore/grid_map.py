"""Relate the voxel grids of a scan and of the model axis by axis, each by a scale and an offset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medseg.errors import GeometryError

SNAP_VOXELS = 1e-3


@dataclass(frozen=True)
class AxisMap:
    """Map the voxels of one native axis to positions on its model axis: `position = scale · index + offset`.

    Args:
        axis: the model axis that this native axis runs along.
        scale: model voxels per native voxel; negative for a flipped axis, 0 for an axis one voxel thick.
        offset: position of native voxel 0, in model voxels.
        model_size: number of voxels of the model axis. Positions outside are clamped to its first or last voxel.
        native_size: number of voxels of the native axis.
        is_nearest: take the nearest model voxel along this axis instead of interpolating.
    """

    axis: int
    scale: float
    offset: float
    model_size: int
    native_size: int
    is_nearest: bool = False

    @property
    def is_whole(self) -> bool:
        """True if every native voxel falls exactly on a model voxel, so that nothing is interpolated."""
        return float(self.scale).is_integer() and float(self.offset).is_integer()

    def positions(self, start: int, stop: int) -> np.ndarray:
        """Return the positions on the model axis of native voxels start..stop-1, clamped to the model grid."""
        index = np.arange(start, stop, dtype=np.float64)
        return np.clip(self.scale * index + self.offset, 0.0, self.model_size - 1.0)


@dataclass(frozen=True)
class CentredAxisMap(AxisMap):
    """Map voxels of equal extents: the axis is cut into `native_size` or `model_size` equal parts.

    `position = (index + 1/2) · scale − 1/2`, rounded as SciPy and PyTorch do it, with scale = model_size / native_size.
    """

    @classmethod
    def between(cls, axis: int, model_size: int, native_size: int, is_nearest: bool = False) -> CentredAxisMap:
        """Return the map of an axis that was resampled from one size to another."""
        scale = model_size / native_size
        return cls(axis, scale, 0.5 * scale - 0.5, model_size, native_size, is_nearest)

    def positions(self, start: int, stop: int) -> np.ndarray:
        """Return the positions on the model axis of native voxels start..stop-1, clamped to the model grid."""
        index = np.arange(start, stop, dtype=np.float64)
        return np.clip(self.scale * (index + 0.5) - 0.5, 0.0, self.model_size - 1.0)


@dataclass(frozen=True)
class GridMap:
    """Map a native grid to a model grid that was made from it by reordering, flipping and rescaling axes.

    Args:
        axes: one `AxisMap` per native axis.
    """

    axes: tuple[AxisMap, ...]

    @property
    def model_shape(self) -> tuple[int, ...]:
        """Shape of the model grid in voxels."""
        sizes = {a.axis: a.model_size for a in self.axes}
        return tuple(sizes[i] for i in range(len(sizes)))

    @property
    def native_shape(self) -> tuple[int, ...]:
        """Shape of the native grid in voxels."""
        return tuple(a.native_size for a in self.axes)

    @property
    def native_axis_of(self) -> tuple[int, ...]:
        """The native axis that runs along each model axis."""
        return tuple(int(i) for i in np.argsort([a.axis for a in self.axes]))


def composed_affine(model_affine: Any, native_affine: Any, spatial_dims: int) -> np.ndarray:
    """Compute the affine from native voxel index to model voxel position: inverse(model) · native.

    Args:
        model_affine: (4, 4) or (d+1, d+1), voxel index to mm.
        native_affine: likewise.
        spatial_dims: 2 or 3; axes of a larger affine are left out.

    Raises:
        GeometryError: an affine is singular or not finite.
    """
    model, native = leading_affine(model_affine, spatial_dims), leading_affine(native_affine, spatial_dims)
    for name, affine in (("model", model), ("native", native)):
        if not np.isfinite(affine).all() or _relative_volume(affine) < 1e-12:
            raise GeometryError(f"the {name} grid's affine must be finite and invertible, found {affine.tolist()}")
    return np.linalg.solve(model, native)


def map_grids(
    model_affine: Any, model_shape: Sequence[int], native_affine: Any, native_shape: Sequence[int]
) -> GridMap | None:
    """Relate two grids axis by axis.

    Positions within 0.001 voxel of a whole-voxel map are snapped to it, so that rounding in a file's float32 affine
    does not blur a scan that was never resampled.

    Args:
        model_affine: voxel index to mm of the model grid.
        model_shape: its shape in voxels.
        native_affine: voxel index to mm of the native grid.
        native_shape: its shape in voxels.

    Returns:
        The map, or None if a rotation or a shear lies between the grids.

    Raises:
        GeometryError: an affine is singular or not finite.
    """
    dims = len(model_shape)
    composed = composed_affine(model_affine, native_affine, dims)
    # The column of an axis one voxel thick decides the axis order but never displaces a voxel.
    reach = np.maximum(np.asarray(native_shape) - 1, 0)
    order = _axis_order(composed[:dims, :dims])
    axes = []
    for native_axis, model_axis in enumerate(order):
        stray = np.delete(composed[:dims, native_axis], model_axis) * reach[native_axis]
        if np.abs(stray).max(initial=0.0) > SNAP_VOXELS:
            return None
        scale, offset = _snap(
            composed[model_axis, native_axis], composed[model_axis, dims], int(native_shape[native_axis])
        )
        axes.append(AxisMap(model_axis, scale, offset, int(model_shape[model_axis]), int(native_shape[native_axis])))
    return GridMap(tuple(axes))


def _relative_volume(affine: np.ndarray) -> float:
    """Return the volume of a voxel relative to a box with the same edges, so that voxels of nanometres are no error."""
    lengths = np.linalg.norm(affine[:-1, :-1], axis=0)
    return abs(float(np.linalg.det(affine[:-1, :-1] / lengths))) if lengths.all() else 0.0


def leading_affine(affine: Any, spatial_dims: int) -> np.ndarray:
    """Return the affine of the first `spatial_dims` axes."""
    full = np.asarray(affine, dtype=np.float64)
    keep = [*range(spatial_dims), full.shape[0] - 1]
    return full[np.ix_(keep, keep)]


def _axis_order(linear: np.ndarray) -> list[int]:
    """Assign a model axis to each native axis, best aligned pairs first, so that each is used once."""
    strength = np.abs(linear) / np.linalg.norm(linear, axis=0, keepdims=True)
    order = [-1] * len(linear)
    for flat in np.argsort(-strength, axis=None, kind="stable"):
        model_axis, native_axis = divmod(int(flat), len(linear))
        if order[native_axis] < 0 and model_axis not in order:
            order[native_axis] = model_axis
    return order


def _snap(scale: float, offset: float, size: int) -> tuple[float, float]:
    """Round scale and offset to whole voxels if no voxel of the axis moves by more than `SNAP_VOXELS`."""
    whole_scale, whole_offset = float(np.round(scale)), float(np.round(offset))
    if size == 1:
        return 0.0, whole_offset if abs(offset - whole_offset) <= SNAP_VOXELS else float(offset)
    if abs(whole_scale) == 1:
        moved = max(abs(offset - whole_offset), abs((scale - whole_scale) * (size - 1) + offset - whole_offset))
        if moved <= SNAP_VOXELS:
            return whole_scale, whole_offset
    return float(scale), float(offset)
