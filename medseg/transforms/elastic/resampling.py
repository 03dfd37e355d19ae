"""Resample arrays through spline maps, a few slices at a time.

Source coordinates exist for one slab of slices only, never for the whole volume. Arrays on one grid are resampled
together, so that the coordinates of a slab are computed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import torch

from medseg.transforms.elastic.deformation import Deformation

Mode = Literal["bilinear", "nearest"]
Padding = Literal["border"] | float

_SLAB_VOXELS = {"cpu": 1 << 16}  # so that coordinates, indices and values of a slab stay in a core's cache
_SLAB_VOXELS_ELSEWHERE = 1 << 24


@dataclass(frozen=True)
class Resampling:
    """Tensor `(B, C, *spatial)` to resample, with its interpolation and padding."""

    batch: torch.Tensor
    mode: Mode
    padding: Padding = "border"

    @property
    def result_dtype(self) -> torch.dtype:
        """The dtype of the input, but float32 for integers that are interpolated."""
        is_kept = self.mode == "nearest" or self.batch.is_floating_point()
        return self.batch.dtype if is_kept else torch.float32


def check_sampling(mode: Mode, padding: Padding) -> tuple[Mode, Padding]:
    """Return mode and padding, or raise ValueError if one of them is not valid."""
    if mode not in _SAMPLERS:
        raise ValueError(f"elastic deformation: mode must be one of {sorted(_SAMPLERS)}, found {mode!r}")
    if isinstance(padding, str) and padding != "border":
        raise ValueError(f'elastic deformation: padding must be "border" or a number, found {padding!r}')
    return mode, padding


@torch.no_grad()
def deform_together(requests: Sequence[Resampling], deformations: Sequence[Deformation]) -> list[torch.Tensor]:
    """Resample tensors of one grid in a single pass, item b of each through `deformations[b]`.

    Args:
        requests: tensors of equal B, spatial shape and device. "bilinear" interpolates linearly along every axis in
            float32; "nearest" copies voxels of any dtype exactly. Outside the patch "border" repeats the edge voxel. A
            number fills what lies more than half a voxel beyond the outermost voxel centres, the same voxels in both
            modes.
        deformations: B records with equal shape, basis and lattices.

    Returns:
        New contiguous tensors of the same shapes and devices, in each request's `result_dtype`.
    """
    device, shape = requests[0].batch.device, requests[0].batch.shape[2:]
    sources = [(r.batch if r.mode == "nearest" else r.batch.float()).contiguous() for r in requests]
    results = [torch.empty_like(source) for source in sources]
    is_filled = any(r.padding != "border" for r in requests)
    for start, coordinates in _slabs(deformations, device):
        slab_shape, stop = coordinates[0].shape, start + coordinates[0].shape[1]
        outside = _outside(coordinates, shape) if is_filled else None
        for coordinate, size in zip(coordinates, shape, strict=True):
            coordinate.clamp_(0, size - 1)
        samplers: dict[tuple[Mode, int], _LinearSampler | _NearestSampler] = {}
        for request, source, result in zip(requests, sources, results, strict=True):
            key = request.mode, source.shape[1]
            if key not in samplers:
                samplers[key] = _SAMPLERS[request.mode](coordinates, shape, source.shape[1])
            flat = source.view(-1)
            for channel in range(source.shape[1]):
                values = samplers[key].sample(flat[channel * shape.numel() :]).view(slab_shape)
                if outside is not None and request.padding != "border":
                    values.masked_fill_(outside, request.padding)
                result[:, channel, start:stop] = values
    return [result.to(request.result_dtype) for result, request in zip(results, requests, strict=True)]


def _slabs(deformations: Sequence[Deformation], device: torch.device) -> Iterator[tuple[int, list[torch.Tensor]]]:
    """Yield the first slice of each slab and its source coordinates in voxels, one `(B, slices, …)` per axis."""
    shape = deformations[0].shape
    controls = torch.from_numpy(np.stack([d.source_controls() for d in deformations]).astype(np.float32)).to(device)
    dense = controls.movedim(-1, 0)  # (ndim, B, K_1, …, K_ndim), upsampled one axis after another
    first, *middle, last = (torch.from_numpy(w.astype(np.float32)).to(device) for w in deformations[0].weights)
    for axis, weights in enumerate(middle, start=3):
        dense = _upsample(dense, weights, axis)
    thickness = max(1, _SLAB_VOXELS.get(device.type, _SLAB_VOXELS_ELSEWHERE) // int(np.prod(shape[1:])))
    for start in range(0, shape[0], thickness):
        rows = _upsample(dense, first[start : start + thickness], 2)
        yield start, list((rows @ last.T).unbind(0))


def _upsample(values: torch.Tensor, weights: torch.Tensor, axis: int) -> torch.Tensor:
    return torch.tensordot(values, weights, dims=([axis], [1])).movedim(-1, axis)


def _outside(coordinates: Sequence[torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
    outside = torch.zeros_like(coordinates[0], dtype=torch.bool)
    for coordinate, size in zip(coordinates, shape, strict=True):
        outside |= (coordinate < -0.5) | (coordinate > size - 0.5)
    return outside


class _NearestSampler:
    """Copy the voxel nearest to each coordinate.

    Args:
        coordinates: one tensor `(B, …)` per spatial axis, in voxels, within `[0, size - 1]`.
        shape: spatial shape of the arrays to sample.
        num_channels: channels of the arrays `(B, C, *shape)` to sample.
    """

    def __init__(self, coordinates: Sequence[torch.Tensor], shape: torch.Size, num_channels: int) -> None:
        num_elements = len(coordinates[0]) * num_channels * shape.numel()
        self._index = _linear_index([c.round() for c in coordinates], shape, num_elements)

    def sample(self, flat: torch.Tensor) -> torch.Tensor:
        """Sample an array of any dtype, flattened from one of its channels on; the result is flat, too."""
        return flat.index_select(0, self._index)


class _LinearSampler:
    """Interpolate linearly along every axis between the 2**ndim voxels around each coordinate.

    Args: as for `_NearestSampler`.
    """

    def __init__(self, coordinates: Sequence[torch.Tensor], shape: torch.Size, num_channels: int) -> None:
        num_elements = len(coordinates[0]) * num_channels * shape.numel()
        lower = [c.floor().clamp_(max=max(size - 2, 0)) for c, size in zip(coordinates, shape, strict=True)]
        self._fractions = [(c - low).flatten() for c, low in zip(coordinates, lower, strict=True)]
        self._index = _linear_index(lower, shape, num_elements)
        strides = [shape[axis + 1 :].numel() if size > 1 else 0 for axis, size in enumerate(shape)]
        self._offsets = [sum(corner) for corner in product(*[(0, stride) for stride in strides])]

    def sample(self, flat: torch.Tensor) -> torch.Tensor:
        """Sample a floating array, flattened from one of its channels on; the result is flat, too."""
        values = [flat[offset:].index_select(0, self._index) for offset in self._offsets]
        for fraction in reversed(self._fractions):  # the last axis varies fastest among the corners
            values = [torch.lerp(low, high, fraction) for low, high in zip(values[::2], values[1::2], strict=True)]
        return values[0]


def _index_dtype(num_elements: int) -> torch.dtype:
    return torch.int32 if num_elements < 2**31 else torch.int64


def _linear_index(per_axis: Sequence[torch.Tensor], shape: torch.Size, num_elements: int) -> torch.Tensor:
    """Compute row-major indices, the start of each batch item added: shape `(B * samples,)`."""
    index = per_axis[0].to(_index_dtype(num_elements))
    for axis, size in list(enumerate(shape))[1:]:
        index.mul_(size).add_(per_axis[axis].to(index.dtype))
    num_items = index.shape[0]
    if num_items > 1:
        starts = torch.arange(num_items, dtype=index.dtype, device=index.device) * (num_elements // num_items)
        index += starts.view(-1, *[1] * (index.ndim - 1))
    return index.flatten()


_SAMPLERS: dict[str, type[_LinearSampler] | type[_NearestSampler]] = {
    "bilinear": _LinearSampler,
    "nearest": _NearestSampler,
}
