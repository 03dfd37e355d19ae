"""Linear and nearest sampling of a flattened array at given coordinates, by gathers.

`torch.nn.functional.grid_sample` has a scalar 3D kernel on CPUs (twice the time) and takes floats alone; gathers copy
label maps of any type exactly, and the indices are made once for every channel and every array on the same grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch


def _index_dtype(num_elements: int) -> torch.dtype:
    return torch.int32 if num_elements < 2**31 else torch.int64


def _linear_index(per_axis: Sequence[torch.Tensor], shape: torch.Size, num_elements: int) -> torch.Tensor:
    """Row-major index within each item, plus each item's start: shape `(B * samples,)`."""
    index = per_axis[0].to(_index_dtype(num_elements))
    for axis, size in list(enumerate(shape))[1:]:
        index.mul_(size).add_(per_axis[axis].to(index.dtype))
    num_items = index.shape[0]
    if num_items > 1:
        starts = torch.arange(num_items, dtype=index.dtype, device=index.device) * (num_elements // num_items)
        index += starts.view(-1, *[1] * (index.ndim - 1))
    return index.flatten()


class NearestSampler:
    """Copies the voxel nearest to each coordinate.

    Args:
        coordinates: one tensor `(B, …)` a spatial axis, in voxels, within `[0, size - 1]`.
        shape: spatial shape of the arrays to sample.
        num_channels: channels of the arrays `(B, C, *shape)` to sample.
    """

    def __init__(self, coordinates: Sequence[torch.Tensor], shape: torch.Size, num_channels: int) -> None:
        num_elements = len(coordinates[0]) * num_channels * shape.numel()
        self._index = _linear_index([c.round() for c in coordinates], shape, num_elements)

    def sample(self, flat: torch.Tensor) -> torch.Tensor:
        """Values, flattened, of an array flattened from one of its channels on; any dtype."""
        return flat.index_select(0, self._index)


class LinearSampler:
    """Interpolates linearly along every axis between the 2**ndim voxels around each coordinate.

    Args: as for `NearestSampler`.
    """

    def __init__(self, coordinates: Sequence[torch.Tensor], shape: torch.Size, num_channels: int) -> None:
        num_elements = len(coordinates[0]) * num_channels * shape.numel()
        lower = [c.floor().clamp_(max=max(size - 2, 0)) for c, size in zip(coordinates, shape, strict=True)]
        self._fractions = [(c - low).flatten() for c, low in zip(coordinates, lower, strict=True)]
        self._index = _linear_index(lower, shape, num_elements)
        strides = [shape[axis + 1 :].numel() if size > 1 else 0 for axis, size in enumerate(shape)]
        self._offsets = [sum(corner) for corner in product(*[(0, stride) for stride in strides])]

    def sample(self, flat: torch.Tensor) -> torch.Tensor:
        """Values, flattened, of a floating array flattened from one of its channels on."""
        values = [flat[offset:].index_select(0, self._index) for offset in self._offsets]
        for fraction in reversed(self._fractions):  # the last axis varies fastest among the corners
            values = [torch.lerp(low, high, fraction) for low, high in zip(values[::2], values[1::2], strict=True)]
        return values[0]
