"""Resample a part of a volume from the model grid to a region of the native grid, one axis after the other.

The value of a voxel depends on its own taps alone, in every floating-point operation. The result therefore does not
depend on how a volume is cut into blocks and slabs.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from medseg.transforms.restore.grid_map import AxisMap, GridMap

INTERPOLATIONS = ("linear", "cubic", "nearest")


def longest_first(shape: Sequence[int]) -> tuple[int, ...]:
    """Order axes from the longest to the shortest, the first of equals first. Volumes are streamed in this order."""
    return tuple(sorted(range(len(shape)), key=lambda axis: (-int(shape[axis]), axis)))


class SeparableResampler:
    """Interpolate linearly or cubically, one axis after the other and the longest model axis last.

    Args:
        grid_map: relation of the native grid to the model grid.
        interpolation: "linear", "cubic" (Catmull–Rom kernel, a = −1/2; Keys 1981, doi:10.1109/TASSP.1981.1163711) or
            "nearest"; see `medseg.transforms.restore.monai_grid` for two voxels at equal distances.
        axis_order: model axes in streaming order; None takes the longest first.
    """

    def __init__(
        self,
        grid_map: GridMap,
        interpolation: Literal["linear", "cubic", "nearest"] = "linear",
        axis_order: Sequence[int] | None = None,
    ) -> None:
        if interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, found {interpolation!r}")
        self.interpolation = interpolation
        self.axis_order = longest_first(grid_map.model_shape) if axis_order is None else tuple(axis_order)
        native_axis_of = grid_map.native_axis_of
        # From here on axes are in streaming order: axis 0 is usually the longest model axis.
        self.native_axes = tuple(native_axis_of[axis] for axis in self.axis_order)
        self.axes = tuple(grid_map.axes[native] for native in self.native_axes)
        self.native_shape = grid_map.native_shape
        whole = [_taps(axis_map, slice(0, axis_map.native_size), interpolation) for axis_map in self.axes]
        self.taps = [taps for taps, _ in whole]
        self.weights = [weights for _, weights in whole]

    @property
    def halos(self) -> tuple[int, ...]:
        """The number of voxels before a position that its value may depend on, per axis."""
        return tuple(len(taps) - 1 for taps in self.taps)

    def ready(self, axis: int, begin: int, end: int) -> slice:
        """Return the native voxels whose last tap lies in begin..end-1 of the model axis."""
        furthest = self.taps[axis].max(axis=0)
        index = np.flatnonzero((furthest >= begin) & (furthest < end))
        return slice(int(index[0]), int(index[-1]) + 1) if len(index) else slice(0, 0)

    def needed(self, axis: int, part: slice) -> slice:
        """Return the model voxels along one axis that the native voxels of `part` are interpolated from."""
        taps = self.taps[axis][:, part]
        return slice(int(taps.min()), int(taps.max()) + 1)

    def cropped(self, native: Sequence[slice], model: Sequence[slice]) -> SeparableResampler:
        """Return the resampler between a box of the native grid and a box of the model grid.

        Every voxel keeps its taps and weights, so that the result is equal to that of the whole grids.

        Args:
            native: voxels of each axis, in streaming order.
            model: likewise; contains every voxel that the native box is interpolated from.
        """
        part = copy(self)
        part.taps = [taps[:, n] - m.start for taps, n, m in zip(self.taps, native, model, strict=True)]
        part.weights = [weights[:, n] for weights, n in zip(self.weights, native, strict=True)]
        part.axes = tuple(
            replace(axis, offset=axis.offset + axis.scale * n.start - m.start, model_size=m.stop - m.start,
                    native_size=n.stop - n.start)
            for axis, n, m in zip(self.axes, native, model, strict=True)
        )  # fmt: skip
        sizes = dict(zip(self.native_axes, (axis.native_size for axis in part.axes), strict=True))
        part.native_shape = tuple(sizes[axis] for axis in range(len(sizes)))
        return part

    def across(self, block: torch.Tensor, origin: Sequence[int], region: Sequence[slice]) -> torch.Tensor:
        """Interpolate along every axis except the first, which is cut to the planes that `along` needs.

        A block in half precision is interpolated in float32.

        Args:
            block: (C, …) part of the model grid, axes in streaming order.
            origin: model index of the block's first voxel.
            region: wanted native voxels along each axis, in streaming order.
        """
        need = self.needed(0, region[0])
        values = block.narrow(1, need.start - origin[0], need.stop - need.start)
        if values.dtype == torch.float16:
            values = values.float()
        for axis in reversed(range(1, len(region))):
            part = region[axis]
            values = _interpolate(
                values, axis + 1, self.taps[axis][:, part] - origin[axis], self.weights[axis][:, part]
            )
        return values

    def along(self, planes: torch.Tensor, region: Sequence[slice], part: slice) -> torch.Tensor:
        """Interpolate the result of `across` along the first axis, for the native voxels `part` of region[0]."""
        first = self.needed(0, region[0]).start
        return _interpolate(planes, 1, self.taps[0][:, part] - first, self.weights[0][:, part])


def _taps(axis_map: AxisMap, part: slice, interpolation: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the model indices (taps, n) of the native voxels of one axis, and their weights (taps, n)."""
    positions = axis_map.positions(part.start, part.stop)
    if axis_map.is_whole or axis_map.is_nearest:
        return np.floor(positions + 0.5).astype(np.int64)[None], np.ones((1, len(positions)))
    if interpolation == "nearest":
        return np.rint(positions).astype(np.int64)[None], np.ones((1, len(positions)))
    low = np.minimum(np.floor(positions).astype(np.int64), max(axis_map.model_size - 2, 0))
    t = positions - low
    if interpolation == "linear":
        taps, weights = np.stack([low, low + 1]), np.stack([1 - t, t])
    else:
        taps = np.stack([low - 1, low, low + 1, low + 2])
        weights = np.stack([((2 - t) * t - 1) * t, (3 * t - 5) * t * t + 2, ((4 - 3 * t) * t + 1) * t, (t - 1) * t * t])
        weights /= 2
    return np.clip(taps, 0, axis_map.model_size - 1), weights


def _interpolate(values: torch.Tensor, axis: int, taps: np.ndarray, weights: np.ndarray) -> torch.Tensor:
    """Compute Σ weight · values[tap] along one axis. The axes keep their order in memory."""
    order = memory_order(values)
    back = [order.index(n) for n in range(values.ndim)]
    return _interpolate_in_order(values.permute(order), order.index(axis), taps, weights).permute(back)


def memory_order(values: torch.Tensor) -> list[int]:
    """Order axes by their stride in memory, from the largest to the smallest."""
    strides = values.stride()
    return sorted(range(values.ndim), key=lambda axis: (-strides[axis], axis))


def _interpolate_in_order(values: torch.Tensor, axis: int, taps: np.ndarray, weights: np.ndarray) -> torch.Tensor:
    count = taps.shape[1]
    if len(taps) == 1:
        first = int(taps[0, 0])
        if np.array_equal(taps[0], np.arange(first, first + count)):
            return values.narrow(axis, first, count)
        return _pick(values, axis, torch.from_numpy(taps[0]).to(values.device))
    index = torch.from_numpy(taps).to(values.device)
    shape = [1] * values.ndim
    shape[axis] = -1
    factor = torch.from_numpy(weights).to(values.dtype).to(values.device).view(len(weights), *shape)
    start = _pick(values, axis, index[0])
    if len(taps) == 2:
        # start + t · (end − start) keeps a constant exactly constant. Three separate operations, because a fused one
        # would round a voxel differently depending on its place in a SIMD vector.
        return _pick(values, axis, index[1]).sub_(start).mul_(factor[1]).add_(start)
    total = start.mul_(factor[0])
    for tap, weight in zip(index[1:], factor[1:], strict=True):
        total.add_(_pick(values, axis, tap).mul_(weight))
    return total


def _pick(values: torch.Tensor, axis: int, index: torch.Tensor) -> torch.Tensor:
    """Return values.index_select(axis, index); along the last axis gather is twice as fast."""
    if axis < values.ndim - 1:
        return values.index_select(axis, index)
    return values.gather(axis, index.expand(*values.shape[:-1], -1))
