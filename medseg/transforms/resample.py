"""Resample a part of a volume from the model grid onto a region of the native grid.

The separable resampler makes one pass an axis; the sheared one (gantry tilt, where Spacing removed a shear) samples
every voxel. Each operation treats a voxel independently of the region asked for, so results do not depend on how a
volume is cut into slabs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch.nn import functional as F

from medseg.transforms.grid_map import AxisMap, GridMap, composed_affine


class Resampler(Protocol):
    """Values on a native region from a block of the model grid."""

    slab_axis: int

    def __call__(self, block: torch.Tensor, origin: Sequence[int], region: Sequence[slice]) -> torch.Tensor:
        """Resample.

        Args:
            block: (C, …), part of the model grid that holds `needed(region)`.
            origin: model index of the block's first voxel.
            region: one slice a native axis.

        Returns:
            (C, *region) in the order of the native axes.
        """
        ...

    def needed(self, region: Sequence[slice]) -> tuple[slice, ...]:
        """The part of the model grid that a native region is interpolated from."""
        ...


class SeparableResampler:
    """Linear or cubic interpolation one axis after the other.

    Args:
        grid_map: how the grids are related.
        interpolation: "linear" or "cubic" (Catmull–Rom kernel, a = −1/2; Keys 1981).
    """

    def __init__(self, grid_map: GridMap, interpolation: Literal["linear", "cubic"] = "linear") -> None:
        if interpolation not in ("linear", "cubic"):
            raise ValueError(f"interpolation must be linear or cubic, found {interpolation!r}")
        self.grid_map = grid_map
        self.interpolation = interpolation
        # Native slabs are cut along the axis stored slowest on the model grid, where planes are contiguous.
        self.slab_axis = grid_map.native_axis_of[0]

    def needed(self, region: Sequence[slice]) -> tuple[slice, ...]:
        """See `Resampler.needed`."""
        parts: list[slice] = [slice(0)] * len(region)
        for axis_map, part in zip(self.grid_map.axes, region, strict=True):
            taps, _ = self._taps(axis_map, part)
            parts[axis_map.axis] = slice(int(taps.min()), int(taps.max()) + 1)
        return tuple(parts)

    def __call__(self, block: torch.Tensor, origin: Sequence[int], region: Sequence[slice]) -> torch.Tensor:
        """See `Resampler.__call__`."""
        values = block
        native_axis_of = self.grid_map.native_axis_of
        # Last axis first: the fast axis is gathered while the data is smallest, and the slow one copies whole planes.
        for model_axis in reversed(range(len(region))):
            native_axis = native_axis_of[model_axis]
            taps, weights = self._taps(self.grid_map.axes[native_axis], region[native_axis])
            values = _interpolate(values, model_axis + 1, taps - origin[model_axis], weights)
        return values.permute(0, *(a.axis + 1 for a in self.grid_map.axes))

    def _taps(self, axis_map: AxisMap, part: slice) -> tuple[np.ndarray, np.ndarray]:
        """Model indices (taps, n) and their weights (taps, n) of the native voxels of one axis."""
        positions = axis_map.positions(part.start, part.stop)
        if axis_map.is_whole:
            return positions.astype(np.int64)[None], np.ones((1, len(positions)))
        low = np.minimum(np.floor(positions).astype(np.int64), max(axis_map.model_size - 2, 0))
        t = positions - low
        if self.interpolation == "linear":
            taps, weights = np.stack([low, low + 1]), np.stack([1 - t, t])
        else:
            taps = np.stack([low - 1, low, low + 1, low + 2])
            weights = np.stack(
                [((2 - t) * t - 1) * t, (3 * t - 5) * t * t + 2, ((4 - 3 * t) * t + 1) * t, (t - 1) * t * t]
            )
            weights /= 2
        return np.clip(taps, 0, axis_map.model_size - 1), weights


def _interpolate(values: torch.Tensor, axis: int, taps: np.ndarray, weights: np.ndarray) -> torch.Tensor:
    """One pass along one axis: Σ weight · values[tap]."""
    index = torch.from_numpy(taps).to(values.device)
    if len(taps) == 1:
        first, count = int(taps[0, 0]), taps.shape[1]
        if np.array_equal(taps[0], np.arange(first, first + count)):
            return values.narrow(axis, first, count)
        return values.index_select(axis, index[0])
    shape = [1] * values.ndim
    shape[axis] = -1
    factor = torch.from_numpy(weights).to(values.device, values.dtype).view(len(weights), *shape)
    start = values.index_select(axis, index[0])
    if len(taps) == 2:
        # start + t · (end − start): a constant stays exactly constant. Separate operations, none fused, so that a
        # voxel's rounding does not depend on where it lies in a vector.
        step = values.index_select(axis, index[1]).sub_(start).mul_(factor[1])
        return step.add_(start)
    total = start.mul_(factor[0])
    for tap, weight in zip(index[1:], factor[1:], strict=True):
        total.add_(values.index_select(axis, tap).mul_(weight))
    return total


class ShearedResampler:
    """Linear interpolation voxel by voxel, for grids related by more than a scale an axis.

    Args:
        model_affine: voxel index to mm of the model grid.
        model_shape: its shape.
        native_affine: voxel index to mm of the native grid.
        native_shape: its shape.
    """

    def __init__(
        self, model_affine: Any, model_shape: Sequence[int], native_affine: Any, native_shape: Sequence[int]
    ) -> None:
        self.model_shape = tuple(int(n) for n in model_shape)
        self.native_to_model = composed_affine(model_affine, native_affine, len(self.model_shape))
        self.slab_axis = int(np.argmax(np.abs(self.native_to_model[0, :-1]) * np.asarray(native_shape)))

    def needed(self, region: Sequence[slice]) -> tuple[slice, ...]:
        """See `Resampler.needed`."""
        ends = np.meshgrid(*([r.start, r.stop - 1] for r in region), indexing="ij")
        corners = np.stack([e.ravel() for e in ends])
        last = np.asarray(self.model_shape)[:, None] - 1
        positions = np.clip(self.native_to_model[:-1, :-1] @ corners + self.native_to_model[:-1, -1:], 0, last)
        low, high = np.floor(positions.min(1)).astype(int), np.ceil(positions.max(1)).astype(int)
        return tuple(slice(int(a), int(b) + 1) for a, b in zip(low, high, strict=True))

    def __call__(self, block: torch.Tensor, origin: Sequence[int], region: Sequence[slice]) -> torch.Tensor:
        """See `Resampler.__call__`."""
        dims = len(region)
        index = [torch.arange(r.start, r.stop, dtype=torch.float64) for r in region]
        matrix = self.native_to_model
        grid = torch.empty(*(len(i) for i in index), dims, dtype=block.dtype)
        for model_axis in range(dims):
            position = torch.full((1,) * dims, float(matrix[model_axis, dims]), dtype=torch.float64)
            for native_axis, i in enumerate(index):
                view = [1] * dims
                view[native_axis] = -1
                position = position + matrix[model_axis, native_axis] * i.view(view)
            position = position.clamp_(0, self.model_shape[model_axis] - 1) - origin[model_axis]
            size = block.shape[model_axis + 1]
            # grid_sample wants −1…1 between the first and last voxel centres, the fast axis first.
            grid[..., dims - 1 - model_axis] = (2 * position / max(size - 1, 1) - 1).to(block.dtype)
        sampled = F.grid_sample(
            block[None], grid[None].to(block.device), mode="bilinear", padding_mode="border", align_corners=True
        )
        return sampled[0]
