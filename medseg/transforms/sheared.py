"""Restore across a shear: where Spacing straightened a sheared scan (gantry tilt), no axis-by-axis way leads back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import torch
from torch.nn import functional as F

from medseg.transforms.grid_map import composed_affine
from medseg.transforms.label_decision import LabelDecision
from medseg.transforms.label_tail import CHUNK_VALUES, Observer, apply_head

CHUNK_VOXELS = 1 << 20


def restore_sheared(
    values: torch.Tensor,
    model_affine: Any,
    native_affine: Any,
    native_shape: Sequence[int],
    decision: LabelDecision,
    head_weight: torch.Tensor | None = None,
    head_bias: torch.Tensor | None = None,
    observers: Sequence[Observer] = (),
) -> torch.Tensor:
    """Labels (native shape) by linear interpolation voxel by voxel, a few planes or rows at a time.

    Args:
        values: (K, *model grid) logits, or features that the head is still to be applied to.
        model_affine: voxel index to mm of the model grid.
        native_affine: voxel index to mm of the native grid.
        native_shape: its shape.
        decision: from logits to label values.
        head_weight: (classes, K) of the head; None where the values are logits.
        head_bias: (classes,) of the head.
        observers: see all logits of every native voxel.
    """
    decision.check(len(values) if head_weight is None else len(head_weight))
    model_shape = values.shape[1:]
    matrix = composed_affine(model_affine, native_affine, len(model_shape))
    labels = torch.empty(tuple(native_shape), dtype=decision.dtype, device=values.device)
    for region in _regions(native_shape, voxels_at_once(len(values), decision.num_channels)):
        grid = _sampling_grid(matrix, model_shape, region).to(values.device, values.dtype)
        sampled = F.grid_sample(values[None], grid[None], mode="bilinear", padding_mode="border", align_corners=True)[0]
        logits = sampled if head_weight is None else apply_head(sampled, head_weight, head_bias)
        winner, best = torch.empty_like(logits[0]), torch.empty_like(logits[0])
        for channel in range(len(logits)):
            decision.see(channel, logits[channel], winner, best)
        labels[region] = decision.labels_of(winner)
        for observer in observers:
            observer.see(logits, region, range(len(region)))
    return labels


def voxels_at_once(num_values: int, num_classes: int) -> int:
    """Native voxels that are interpolated together: few enough that all their values stay small."""
    return max(1, min(CHUNK_VOXELS, CHUNK_VALUES // max(num_values, num_classes)))


def _regions(shape: Sequence[int], voxels: int) -> Iterator[tuple[slice, ...]]:
    """Cut a volume into planes across its first axis, and planes that are larger than wanted into rows."""
    plane = prod(shape[1:])
    planes = max(1, voxels // plane)
    rows = shape[1] if plane <= voxels else max(1, voxels // prod(shape[2:]))
    for first in range(0, shape[0], planes):
        for row in range(0, shape[1], rows):
            begun = slice(first, min(first + planes, shape[0])), slice(row, min(row + rows, shape[1]))
            yield (*begun, *(slice(0, n) for n in shape[2:]))


def _sampling_grid(matrix: Any, model_shape: Sequence[int], region: Sequence[slice]) -> torch.Tensor:
    """Positions (*region, d) for grid_sample: −1…1 between the first and last voxel centres, the fast axis first."""
    dims = len(region)
    index = [torch.arange(part.start, part.stop, dtype=torch.float64) for part in region]
    grid = torch.empty(*(len(i) for i in index), dims, dtype=torch.float64)
    for model_axis in range(dims):
        position = torch.full((1,) * dims, float(matrix[model_axis, dims]), dtype=torch.float64)
        for native_axis, i in enumerate(index):
            view = [1] * dims
            view[native_axis] = -1
            position = position + float(matrix[model_axis, native_axis]) * i.view(view)
        last = model_shape[model_axis] - 1
        grid[..., dims - 1 - model_axis] = 2 * position.clamp(0, last) / max(last, 1) - 1
    return grid
