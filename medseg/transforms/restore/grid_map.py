"""How two grids of one scan are related: axis by axis, each a scale and an offset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medseg.errors import GeometryError

SNAP_VOXELS = 1e-3


@dataclass(frozen=True)
class AxisMap:
    """`position = scale · index + offset`: where a voxel of one native axis lies on its model axis.

    Args:
        axis: the model axis this native axis runs along.
        scale: model voxels a native voxel; negative where the axis is flipped, 0 for an axis one voxel thick.
        offset: position of native voxel 0, in model voxels.
        model_size: number of voxels of the model axis; positions outside are clamped to its first or last voxel.
        native_size: number of voxels of the native axis.
    """

    axis: int
    scale: float
    offset: float
    model_size: int
    native_size: int

    @property
    def is_whole(self) -> bool:
        """Whether every native voxel falls exactly on a model voxel, so that nothing is interpolated."""
        return float(self.scale).is_integer() and float(self.offset).is_integer()

    def positions(self, start: int, stop: int) -> np.ndarray:
        """Positions on the model axis of the native voxels start..stop-1, clamped to the model grid."""
        index = np.arange(start, stop, dtype=np.float64)
        return np.clip(self.scale * index + self.offset, 0.0, self.model_size - 1.0)


@dataclass(frozen=True)
class GridMap:
    """From a native grid to the model grid made of it by reordering, flipping and rescaling axes.

    Args:
        axes: one `AxisMap` a native axis.
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
        """For each model axis the native axis that runs along it."""
        return tuple(int(i) for i in np.argsort([a.axis for a in self.axes]))


def composed_affine(model_affine: Any, native_affine: Any, spatial_dims: int) -> np.ndarray:
    """The affine that takes a native voxel index to a model voxel position: inverse(model) · native.

    Args:
        model_affine: (4, 4) or (d+1, d+1), voxel index to mm.
        native_affine: likewise.
        spatial_dims: 2 or 3; larger affines lose the axes beyond.

    Raises:
        GeometryError: an affine is singular or not finite.
    """
    model, native = _leading(model_affine, spatial_dims), _leading(native_affine, spatial_dims)
    for name, affine in (("model", model), ("native", native)):
        if not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-12:
            raise GeometryError(f"the {name} grid's affine must be finite and invertible, found {affine.tolist()}")
    return np.linalg.solve(model, native)


def map_grids(
    model_affine: Any, model_shape: Sequence[int], native_affine: Any, native_shape: Sequence[int]
) -> GridMap | None:
    """Relate two grids axis by axis; None where they are related by a rotation or a shear.

    Positions within 0.001 voxel of a whole-voxel map are snapped to it, so that rounding in a file's float32 affine
    does not blur a scan that was never resampled.

    Args:
        model_affine: voxel index to mm of the model grid.
        model_shape: its shape in voxels.
        native_affine: voxel index to mm of the native grid.
        native_shape: its shape in voxels.
    """
    dims = len(model_shape)
    composed = composed_affine(model_affine, native_affine, dims)
    # An axis one voxel thick moves nothing: its column decides the axis but never displaces a voxel.
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


def _leading(affine: Any, spatial_dims: int) -> np.ndarray:
    """The affine of the first `spatial_dims` axes."""
    full = np.asarray(affine, dtype=np.float64)
    keep = [*range(spatial_dims), full.shape[0] - 1]
    return full[np.ix_(keep, keep)]


def _axis_order(linear: np.ndarray) -> list[int]:
    """The model axis each native axis runs along, the clearest pairs first so that each is used once."""
    strength = np.abs(linear) / np.linalg.norm(linear, axis=0, keepdims=True)
    order = [-1] * len(linear)
    for flat in np.argsort(-strength, axis=None, kind="stable"):
        model_axis, native_axis = divmod(int(flat), len(linear))
        if order[native_axis] < 0 and model_axis not in order:
            order[native_axis] = model_axis
    return order


def _snap(scale: float, offset: float, size: int) -> tuple[float, float]:
    """Round to whole voxels where no voxel of the axis moves by more than the tolerance."""
    whole_scale, whole_offset = float(np.round(scale)), float(np.round(offset))
    if size == 1:
        return 0.0, whole_offset if abs(offset - whole_offset) <= SNAP_VOXELS else float(offset)
    if abs(whole_scale) == 1:
        moved = max(abs(offset - whole_offset), abs((scale - whole_scale) * (size - 1) + offset - whole_offset))
        if moved <= SNAP_VOXELS:
            return whole_scale, whole_offset
    return float(scale), float(offset)
