"""Restore across a shear: where Spacing straightened a sheared scan (gantry tilt), no axis-by-axis way leads back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from medseg.transforms.grid_map import composed_affine
from medseg.transforms.label_decision import LabelDecision

CHUNK_VOXELS = 1 << 20


def restore_sheared(
    logits: torch.Tensor,
    model_affine: Any,
    native_affine: Any,
    native_shape: Sequence[int],
    decision: LabelDecision,
) -> torch.Tensor:
    """Labels (native shape) of logits (C, *model grid) by linear interpolation voxel by voxel, in slabs."""
    model_shape = logits.shape[1:]
    matrix = composed_affine(model_affine, native_affine, len(model_shape))
    labels = torch.empty(tuple(native_shape), dtype=decision.dtype, device=logits.device)
    thickness = max(1, CHUNK_VOXELS // max(1, labels[0].numel()))
    for start in range(0, labels.shape[0], thickness):
        part = labels[start : start + thickness]
        grid = _sampling_grid(matrix, model_shape, start, part.shape).to(logits.device, logits.dtype)
        winner, best = torch.empty((2, *part.shape), dtype=logits.dtype, device=logits.device)
        for channel in range(logits.shape[0]):
            sampled = F.grid_sample(
                logits[None, channel : channel + 1], grid[None], mode="bilinear", padding_mode="border",
                align_corners=True,
            )  # fmt: skip
            decision.see(channel, sampled[0, 0], winner, best)
        part.copy_(decision.labels_of(winner))
    return labels


def _sampling_grid(matrix: Any, model_shape: Sequence[int], start: int, shape: Sequence[int]) -> torch.Tensor:
    """Positions (*shape, d) for grid_sample: −1…1 between the first and last voxel centres, the fast axis first."""
    dims = len(shape)
    index = [torch.arange(n, dtype=torch.float64) + (start if axis == 0 else 0) for axis, n in enumerate(shape)]
    grid = torch.empty(*shape, dims, dtype=torch.float64)
    for model_axis in range(dims):
        position = torch.full((1,) * dims, float(matrix[model_axis, dims]), dtype=torch.float64)
        for native_axis, i in enumerate(index):
            view = [1] * dims
            view[native_axis] = -1
            position = position + float(matrix[model_axis, native_axis]) * i.view(view)
        last = model_shape[model_axis] - 1
        grid[..., dims - 1 - model_axis] = 2 * position.clamp(0, last) / max(last, 1) - 1
    return grid
