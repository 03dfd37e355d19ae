"""Resample between two grids with the rounding of MONAI's `Spacing`, without a position per voxel in memory.

Two things depend on the last bits. A native voxel in the middle between two model voxels gets the label of one of them,
as in scans of 0.75 mm and a model grid of 1.5 mm. And an interpolated voxel is zero or nearly zero, which a
normalisation of the voxels that are not zero tells apart. MONAI's positions are repeated here by its own functions, one
axis at a time, because the axes do not depend on each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch
from nibabel.orientations import inv_ornt_aff
from torch.nn import functional as F

from medseg.transforms.restore.grid_map import AxisMap, GridMap, leading_affine, map_grids

# Voxels that are interpolated at once.
SLAB_VOXELS = 1 << 21


@dataclass(frozen=True)
class NearestAxisMap(AxisMap):
    """Map each voxel of a native axis to one voxel of its model axis.

    Args:
        index: (native_size,) number of the model voxel.
    """

    index: np.ndarray = field(default_factory=lambda: np.zeros(0), compare=False)

    @property
    def is_whole(self) -> bool:
        """False, because the positions are listed."""
        return False

    def positions(self, start: int, stop: int) -> np.ndarray:
        """Return the model voxels of native voxels start..stop-1."""
        return self.index[start:stop]


def nearest_map(
    model_affine: Any, model_shape: Sequence[int], native_affine: Any, native_shape: Sequence[int]
) -> GridMap | None:
    """Relate two grids by the nearest voxel along each axis; the arguments are those of `map_grids`.

    Returns:
        The map, or None if a rotation or a shear lies between the grids.
    """
    grid_map = map_grids(model_affine, model_shape, native_affine, native_shape)
    if grid_map is None or all(axis.is_whole for axis in grid_map.axes):
        return grid_map
    dims = len(model_shape)
    directions = [[axis.axis, -1 if axis.scale < 0 else 1] for axis in grid_map.axes]
    native = torch.from_numpy(leading_affine(native_affine, dims))
    oriented = native @ torch.from_numpy(inv_ornt_aff(np.array(directions), tuple(native_shape)))
    sizes = {axis.axis: axis.native_size for axis in grid_map.axes}
    found = axis_coordinates(model_affine, model_shape, oriented.numpy(), [sizes[n] for n in range(dims)])
    axes = []
    for axis in grid_map.axes:
        numbers = torch.arange(axis.model_size, dtype=torch.float64).view(1, 1, 1, -1)
        positions = torch.stack([found[axis.axis], torch.zeros_like(found[axis.axis])], dim=-1)[None, None]
        index = F.grid_sample(numbers, positions, "nearest", "border", align_corners=False).flatten().numpy()
        index = index[::-1].copy() if axis.scale < 0 else index
        axes.append(NearestAxisMap(axis.axis, axis.scale, axis.offset, axis.model_size, axis.native_size, True, index))
    return GridMap(tuple(axes))


def axis_coordinates(
    source_affine: Any, source_shape: Sequence[int], target_affine: Any, target_shape: Sequence[int]
) -> list[torch.Tensor]:
    """Return where the voxels of a target grid lie on each axis of a source grid, as `grid_sample` takes it.

    Args:
        source_affine: voxel index to mm of the grid with the values. Its axes are parallel to those of the target.
        source_shape: its shape in voxels.
        target_affine: voxel index to mm of the grid to sample.
        target_shape: its shape in voxels.

    Returns:
        One tensor (target size,) of float64 per axis.
    """
    from monai.networks.utils import to_norm_affine  # most predictions need no MONAI

    dims = len(source_shape)
    between = np.linalg.solve(leading_affine(source_affine, dims), leading_affine(target_affine, dims))
    theta = to_norm_affine(torch.from_numpy(between)[None], source_shape, target_shape)[0]
    coordinates = []
    for axis, size in enumerate(target_shape):
        line = torch.zeros(1, 2, 3, dtype=torch.float64)
        line[0, 0, 0], line[0, 0, 2], line[0, 1, 1] = theta[axis, axis], theta[axis, dims], 1.0
        coordinates.append(F.affine_grid(line, [1, 1, 1, size], align_corners=False)[0, 0, :, 0])
    return coordinates


def sample_linearly(source: torch.Tensor, coordinates: Sequence[torch.Tensor], out: torch.Tensor) -> None:
    """Interpolate a volume linearly, a few planes at a time.

    Args:
        source: (*source shape) of any real type.
        coordinates: see `axis_coordinates`.
        out: (*target shape) receives the values.
    """
    values, rest = source.to(torch.float64)[None, None], coordinates[1:]
    planes = max(1, SLAB_VOXELS // max(1, prod(len(line) for line in rest)))
    for start in range(0, len(coordinates[0]), planes):
        mesh = torch.meshgrid(coordinates[0][start : start + planes], *rest, indexing="ij")
        positions = torch.stack(mesh[::-1], dim=-1)[None]
        out[start : start + planes] = F.grid_sample(values, positions, "bilinear", "border", align_corners=False)[0, 0]


def sampling_bytes(source_shape: Sequence[int], target_shape: Sequence[int]) -> int:
    """Return an upper bound in bytes of what `sample_linearly` allocates."""
    plane = prod(target_shape[1:])
    slab = min(prod(target_shape), max(plane, SLAB_VOXELS))
    return 8 * (prod(source_shape) + (2 * len(target_shape) + 1) * slab)
