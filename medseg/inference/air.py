"""Leaving out tiles that hold nothing but air, where the plan declares what air is.

A plan's `air_below` says: where the first channel is below this value, there is background. A tile is left out where
all its voxels are air, and so are their neighbours as far as the interpolation to the native grid looks. Labels are
then those of predicting every tile, provided the network labels air as background:

* a native voxel interpolated from voxels that no left-out tile covers has exactly the values it would have had;
* one that is interpolated from a voxel of a left-out tile is interpolated from air alone, which is background wherever
  it is predicted, and interpolation between background and background gives background. It is labelled so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from medseg.inference.tiles import TileGrid
from medseg.transforms.resample import SeparableResampler


def air_tiles(intensity: torch.Tensor, below: float, grid: TileGrid, rim: int) -> frozenset[tuple[int, ...]]:
    """Indices (in the grid's axis order) of the tiles that hold nothing but air.

    Args:
        intensity: (*image_shape) the first channel on the model grid, as in the file.
        below: what air is below.
        grid: the tiles.
        rim: voxels around a tile that must be air as well.
    """
    # The largest value of each tile, axis by axis: neighbouring tiles share what they share.
    largest = intensity
    for axis in range(intensity.ndim):
        pad, length = grid.pad_before[axis], grid.image_shape[axis]
        parts = []
        for start in grid.starts[axis]:
            low, high = max(start - pad - rim, 0), min(start - pad + grid.tile[axis] + rim, length)
            parts.append(largest.narrow(axis, low, high - low).amax(axis, keepdim=True))
        largest = torch.cat(parts, axis)
    air = (largest < below).permute(grid.axis_order).nonzero()
    return frozenset(tuple(index) for index in air.tolist())


def clear_air(
    labels: torch.Tensor, tiles: Iterable[Sequence[int]], grid: TileGrid, resampler: SeparableResampler, background: int
) -> None:
    """Label as background every native voxel that is interpolated from a voxel of a left-out tile.

    Args:
        labels: (*native shape), changed.
        tiles: indices of the left-out tiles, in the grid's axis order.
        grid: the tiles.
        resampler: from the model grid to the native grid.
        background: the label.
    """
    target = labels.permute(*resampler.native_axes)
    for index in tiles:
        region = []
        for place, (axis, i) in enumerate(zip(grid.axis_order, index, strict=True)):
            first = grid.starts[axis][i] - grid.pad_before[axis]
            taps = resampler.taps[place]
            touched = np.flatnonzero(((taps >= first) & (taps < first + grid.tile[axis])).any(axis=0))
            region.append(slice(int(touched[0]), int(touched[-1]) + 1) if len(touched) else slice(0, 0))
        target[tuple(region)] = background
