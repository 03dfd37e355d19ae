"""Resampling through a spline map, a few slices at a time: the dense displacement field never exists as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from medseg.transforms.elastic_parameters import Deformation

Mode = Literal["bilinear", "nearest"]
_SLAB_VOXELS = 1 << 16  # coordinates of a slab stay in the cache between the products that make and use them


def deform_batch(
    batch: torch.Tensor, deformations: Sequence[Deformation], mode: Mode, padding: str | float = "border"
) -> torch.Tensor:
    """Resample every item of a batch through its own map, once.

    Args:
        batch: shape `(B, C, *spatial)`, any dtype and device.
        deformations: B records drawn for `spatial`, with equal lattices.
        mode: "bilinear" interpolates (floating result), "nearest" copies voxels (any dtype, exactly).
        padding: "border" repeats the edge voxel; a number fills what lies outside the patch.

    Returns:
        Same shape and device; floating dtype as the input, float32 for integers under "bilinear", unchanged for "nearest".
    """
    first = deformations[0]
    weights = [torch.from_numpy(w.astype(np.float32)).to(batch.device) for w in first.weights]
    controls = torch.as_tensor(np.stack([d.source_controls() for d in deformations]), dtype=torch.float32)
    controls = controls.to(batch.device)
    if mode == "nearest":
        return _nearest(batch, controls, weights, padding)
    dtype = batch.dtype if batch.is_floating_point() else torch.float32
    return _linear(batch.float(), controls, weights, padding).to(dtype)


def _slab_thickness(shape: Sequence[int]) -> int:
    return max(1, _SLAB_VOXELS // int(np.prod(shape[1:])))


def _upsample_all_but_last(controls: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """`(B, K_1, …, K_n, c)` to `(B, n_1, …, n_(n-1), K_n * c)`."""
    for axis, matrix in enumerate(weights[:-1], start=1):
        controls = torch.movedim(torch.tensordot(matrix, controls, dims=([1], [axis])), 0, axis)
    return controls.flatten(-2)


def _linear(
    batch: torch.Tensor, controls: torch.Tensor, weights: Sequence[torch.Tensor], padding: str | float
) -> torch.Tensor:
    shape = batch.shape[2:]
    ndim = len(shape)
    size = torch.tensor(shape, dtype=torch.float32, device=batch.device)
    normalised = ((2 * controls - (size - 1)) / (size - 1).clamp(min=1)).flip(-1)  # grid_sample: x first, [-1, 1]
    last = torch.kron(weights[-1].T.contiguous(), torch.eye(ndim, device=batch.device))  # (K * ndim, n * ndim)
    fill = 0.0 if isinstance(padding, str) else float(padding)
    source = batch - fill if fill else batch
    out = torch.empty_like(batch)
    step = _slab_thickness(shape)
    for start in range(0, shape[0], step):
        slab = [weights[0][start : start + step], *weights[1:]]
        grid = _upsample_all_but_last(normalised, slab) @ last
        grid = grid.reshape(batch.shape[0], -1, *shape[1:], ndim)
        out[:, :, start : start + step] = F.grid_sample(
            source, grid, "bilinear", "border" if isinstance(padding, str) else "zeros", align_corners=True
        )
    return out.add_(fill) if fill else out


def _nearest(
    batch: torch.Tensor, controls: torch.Tensor, weights: Sequence[torch.Tensor], padding: str | float
) -> torch.Tensor:
    shape = batch.shape[2:]
    out = torch.empty_like(batch, memory_format=torch.contiguous_format)
    step = _slab_thickness(shape)
    flat = batch.flatten(2)
    planes = controls.movedim(-1, 0)  # one coordinate at a time: nothing to interleave
    for start in range(0, shape[0], step):
        slab = [weights[0][start : start + step], *weights[1:]]
        index: torch.Tensor | None = None
        outside: torch.Tensor | None = None
        for axis, size in enumerate(shape):
            nearest = (_upsample_all_but_last(planes[axis].unsqueeze(-1), slab) @ weights[-1].T).round_()
            if not isinstance(padding, str):
                beyond = (nearest < 0) | (nearest > size - 1)
                outside = beyond if outside is None else outside | beyond
            nearest = nearest.clamp_(0, size - 1).to(torch.int32 if flat.shape[-1] < 2**31 else torch.int64)
            index = nearest if index is None else index.mul_(size).add_(nearest)
        assert index is not None
        for item in range(batch.shape[0]):
            for channel in range(batch.shape[1]):
                values = flat[item, channel].index_select(0, index[item].reshape(-1)).reshape(index.shape[1:])
                if outside is not None:
                    values = values.masked_fill(outside[item], float(padding))
                out[item, channel, start : start + step] = values
    return out
