"""Restore logits on the model grid to labels of the native shape, slab by slab.

Orientation and spacing only reorder, flip and rescale axes. Linear interpolation therefore separates into one pass per
axis. Grids that a rotation or a shear separates are interpolated voxel by voxel instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any, Literal

import torch
from torch.nn import functional as F

from medseg.transforms.restore.grid_map import composed_affine, map_grids
from medseg.transforms.restore.label_decision import CHUNK_VALUES, LabelDecision, LabelRestorer, Observer, apply_head
from medseg.transforms.restore.monai_grid import nearest_map
from medseg.transforms.restore.resample import SeparableResampler

SHEARED_CHUNK_VOXELS = 1 << 20  # native voxels interpolated together by `restore_sheared`


def restore_labels(
    logits: torch.Tensor,
    model_affine: Any,
    native_affine: Any,
    native_shape: Sequence[int],
    decision: LabelDecision,
    interpolation: Literal["linear", "cubic", "nearest"] = "linear",
    observers: Sequence[Observer] = (),
) -> torch.Tensor:
    """Restore logits (C, *model grid) to labels of the native shape, slab by slab.

    Args:
        logits: (C, *model grid).
        model_affine: voxel index to mm of the model grid.
        native_affine: voxel index to mm of the native grid.
        native_shape: its shape in voxels.
        decision: from logits to label values.
        interpolation: "linear", "cubic" or "nearest"; "cubic" is linear for a sheared grid.
        observers: receive the logits of every native voxel.
    """
    decision.check(logits.shape[0])
    logits = decision.probabilities(logits.float()) if decision.uses_probabilities else logits.float()
    relate = nearest_map if interpolation == "nearest" else map_grids
    grid_map = relate(model_affine, logits.shape[1:], native_affine, native_shape)
    if grid_map is None:
        return restore_sheared(
            logits, model_affine, native_affine, native_shape, decision, observers=observers,
            is_nearest=interpolation == "nearest",
        )  # fmt: skip
    resampler = SeparableResampler(grid_map, interpolation)
    labels = torch.empty(tuple(native_shape), dtype=decision.dtype, device=logits.device)
    block = logits.permute(0, *(axis + 1 for axis in resampler.axis_order))
    region = [slice(0, native_shape[axis]) for axis in resampler.native_axes]
    LabelRestorer(resampler, decision, observers=observers)(block, (0,) * len(region), region, labels)
    return labels


def restore_sheared(
    values: torch.Tensor,
    model_affine: Any,
    native_affine: Any,
    native_shape: Sequence[int],
    decision: LabelDecision,
    head_weight: torch.Tensor | None = None,
    head_bias: torch.Tensor | None = None,
    observers: Sequence[Observer] = (),
    is_nearest: bool = False,
) -> torch.Tensor:
    """Restore labels by linear interpolation voxel by voxel, a few planes or rows at a time.

    Args:
        values: (K, *model grid) logits, or the `probabilities` of a decision that uses them, or features if a head is
            given.
        model_affine: voxel index to mm of the model grid.
        native_affine: voxel index to mm of the native grid.
        native_shape: its shape in voxels.
        decision: from logits to label values.
        head_weight: (classes, K) of the head; None if the values are logits.
        head_bias: (classes,) of the head.
        observers: receive the logits of every native voxel.
        is_nearest: take the nearest voxel instead of interpolating.
    """
    decision.check(len(values) if head_weight is None else len(head_weight))
    model_shape = values.shape[1:]
    matrix = composed_affine(model_affine, native_affine, len(model_shape))
    labels = torch.empty(tuple(native_shape), dtype=decision.dtype, device=values.device)
    for region in _regions(native_shape, voxels_at_once(len(values), decision.num_channels)):
        grid = _sampling_grid(matrix, model_shape, region).to(values.device, values.dtype)
        mode = "nearest" if is_nearest else "bilinear"
        sampled = F.grid_sample(values[None], grid[None], mode=mode, padding_mode="border", align_corners=True)[0]
        logits = sampled if head_weight is None else apply_head(sampled, head_weight, head_bias)
        winner, best = torch.empty_like(logits[0]), torch.empty_like(logits[0])
        for channel in range(len(logits)):
            decision.update(channel, logits[channel], winner, best)
        labels[region] = decision.labels_of(winner)
        if observers:
            logits = decision.logits(logits)
        for observer in observers:
            observer.observe(logits, region, range(len(region)))
    return labels


def sheared_bytes(num_values: int, num_classes: int, spatial_dims: int, is_observed: bool) -> int:
    """Return an upper bound in bytes of what `restore_sheared` allocates beside its arguments and its result.

    Args:
        num_values: channels of the values.
        num_classes: logits per voxel.
        spatial_dims: 2 or 3.
        is_observed: True if observers compute probabilities from the logits.
    """
    positions = 8 * (spatial_dims + 3) + 4 * spatial_dims  # computed in float64, kept in float32
    values = 4 * (num_values + num_classes * (4 if is_observed else 1) + 4)
    return voxels_at_once(num_values, num_classes) * (positions + values)


def voxels_at_once(num_values: int, num_classes: int) -> int:
    """Return how many native voxels `restore_sheared` interpolates together, so that their values stay few."""
    return max(1, min(SHEARED_CHUNK_VOXELS, CHUNK_VALUES // max(num_values, num_classes)))


def _regions(shape: Sequence[int], voxels: int) -> Iterator[tuple[slice, ...]]:
    """Cut a volume into planes across its first axis, and planes of more than `voxels` voxels into rows."""
    plane = prod(shape[1:])
    planes = max(1, voxels // plane)
    rows = shape[1] if plane <= voxels else max(1, voxels // prod(shape[2:]))
    for first in range(0, shape[0], planes):
        for row in range(0, shape[1], rows):
            part = slice(first, min(first + planes, shape[0])), slice(row, min(row + rows, shape[1]))
            yield (*part, *(slice(0, n) for n in shape[2:]))


def _sampling_grid(matrix: Any, model_shape: Sequence[int], region: Sequence[slice]) -> torch.Tensor:
    """Compute positions (*region, d) for grid_sample: −1…1 from the first to the last voxel centre, last axis first."""
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
