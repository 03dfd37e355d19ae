"""Prepare a scan exactly as nnU-Net does: crop, normalise, then resample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional as F

from medseg.errors import VolumeError
from medseg.inference.exact.exact_grid import ExactGrid, ResamplingStep, exact_grid, image_step
from medseg.plan import Plan
from medseg.transforms.normalization import ChannelNormalizer
from medseg.transforms.restore.grid_map import CentredAxisMap
from medseg.volumes import Grid


def exact_image(
    channels: Sequence[np.ndarray], native: Grid, plan: Plan, case: str = ""
) -> tuple[torch.Tensor, ExactGrid]:
    """Return the network's input, and the grids that relate it to the scan.

    Args:
        channels: arrays on the scan's grid, as stored.
        native: the scan's grid.
        plan: with `resampling`.
        case: name of the scan, for messages.

    Returns:
        (C, *model grid) in float32; a 2D image gets a first axis of one voxel. And the grids.

    Raises:
        VolumeError: a value exceeds the range of float32, or a picture in colours has values outside 0..255.
    """
    whole = exact_grid(native, plan)
    with np.errstate(over="ignore"):
        oriented = [whole.oriented(array) for array in channels]
        box = _nonzero_box(oriented)
        image = np.stack([array[box].astype(np.float32) for array in oriented])
    if not all(map(np.isfinite, (image.min(), image.max()))):
        raise VolumeError(f"{case or 'image'}: holds values beyond the range of float32; rescale them first")
    grid = exact_grid(native, plan, box)
    normalized = _normalize(image, plan, case)
    resampled = resample_image(normalized, grid.model_shape, grid.spacing, grid.model_spacing, image_step(plan))
    return resampled, grid


def exact_labels(array: np.ndarray, grid: ExactGrid) -> torch.Tensor:
    """Return a label map (*model grid) of the same scan; each voxel has the label of the nearest one.

    Args:
        array: labels on the scan's grid, as stored.
        grid: as `exact_image` returned it.
    """
    labels = grid.oriented(array)[grid.box]
    for axis, (model, native) in enumerate(zip(grid.model_shape, grid.box_shape, strict=True)):
        # The map leads from the model grid to the box here, in the direction opposite to that of logits.
        positions = CentredAxisMap.between(axis, native, model).positions(0, model)
        labels = labels.take(np.floor(positions + 0.5).astype(np.int64), axis)
    return torch.from_numpy(np.ascontiguousarray(labels))


def exact_image_bytes(grid: ExactGrid, num_channels: int) -> int:
    """Return an upper bound of the memory that `exact_image` takes, with the image that it returns."""
    native, model = prod(grid.box_shape), prod(grid.model_shape)
    float32, float64 = 4, 8
    resampling = 0 if native == model else float64 * (native + 2 * max(native, model))
    return float32 * num_channels * (native + model) + max(resampling, 3 * native)


def _nonzero_box(channels: Sequence[np.ndarray]) -> tuple[slice, ...]:
    """Return the smallest box with every voxel that is not zero in some channel; everything if there is none."""
    mask = channels[0] != 0
    for array in channels[1:]:
        mask |= array != 0
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        found = np.flatnonzero(mask.any(axis=others))
        box.append(slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, mask.shape[axis]))
    return tuple(box)


def _normalize(image: np.ndarray, plan: Plan, case: str) -> np.ndarray:
    """Normalise the channels in place. Voxels outside the mask of a masked z-score keep their zeros."""
    inside: torch.Tensor | None = None
    if any(entry.get("foreground") == "mask" for entry in plan.normalization):
        inside = torch.from_numpy(ndimage.binary_fill_holes((image != 0).any(axis=0)))
    for channel, entry in zip(torch.from_numpy(image), plan.normalization, strict=True):
        mask = inside if entry.get("foreground") == "mask" else None
        scaling = ChannelNormalizer([entry]).scalings(channel[None], mask, case)[0]
        scaling = replace(scaling, scale=max(scaling.scale, 1e-8))  # as in nnU-Net
        if np.isfinite(scaling.lower) or np.isfinite(scaling.upper):
            channel.clamp_(scaling.lower, scaling.upper)
        scaling.apply(channel, out=channel)
        if mask is not None:
            channel.masked_fill_(~mask, 0.0)
    return image


def resample_image(
    image: np.ndarray,
    shape: Sequence[int],
    current: Sequence[float],
    new: Sequence[float],
    step: ResamplingStep,
) -> torch.Tensor:
    """Resample the channels of an image.

    Args:
        image: (C, …) float32 with three spatial axes.
        shape: number of voxels of the result along each axis.
        current: spacing of the image.
        new: spacing of the result.
        step: the method.

    Returns:
        (C, *shape) float32.
    """
    if step.method == "none" or tuple(image.shape[1:]) == tuple(shape):
        return torch.from_numpy(image)
    coarse = step.coarse_axis(current, new)
    out = torch.empty(len(image), *shape)
    for channel, target in zip(torch.from_numpy(image), out, strict=True):
        resample = _by_torch if step.method == "torch" else _by_spline
        target.copy_(resample(channel, shape, coarse, step))
    return out


def _by_torch(channel: torch.Tensor, shape: Sequence[int], coarse: int | None, step: ResamplingStep) -> torch.Tensor:
    """Interpolate linearly, and along a coarse axis take the nearest voxel: nnU-Net's `resample_torch_fornnunet`."""
    if coarse is None:
        return F.interpolate(channel[None, None], tuple(shape), mode="trilinear")[0, 0]
    plane = [size for axis, size in enumerate(shape) if axis != coarse]
    slices = channel.movedim(coarse, 0)[:, None]
    if list(slices.shape[2:]) != plane:
        slices = F.interpolate(slices, plane, mode="bilinear")
    stacked = slices[:, 0].movedim(0, coarse)[None, None]
    if tuple(stacked.shape[2:]) != tuple(shape):
        stacked = F.interpolate(stacked, tuple(shape), mode="nearest-exact")
    return stacked[0, 0]


def _by_spline(channel: torch.Tensor, shape: Sequence[int], coarse: int | None, step: ResamplingStep) -> torch.Tensor:
    """Interpolate by splines in float64 and clip to the range of the input, as scikit-image's `resize` does.

    A spline of several axes is a product of splines of one axis each. Every axis is therefore one product with the
    matrix of SciPy's own responses to a single voxel.
    """
    values = channel.double()
    others = [axis for axis in range(3) if axis != coarse]
    dims = others if coarse is not None else [0, 1, 2]
    low, high = values.amin(dims, keepdim=True), values.amax(dims, keepdim=True)
    # Axes that become shorter first, so that the others have less to do.
    for axis in sorted(others, key=lambda axis: shape[axis] / channel.shape[axis]):
        values = _along(values, axis, _spline_matrix(channel.shape[axis], shape[axis], step.order))
    values = torch.minimum(torch.maximum(values, low), high)
    if coarse is not None:
        values = _along(values, coarse, _coarse_matrix(channel.shape[coarse], shape[coarse], step.order_z))
    return values


def _along(values: torch.Tensor, axis: int, matrix: torch.Tensor | None) -> torch.Tensor:
    """Multiply a matrix (new, old) with one axis of three."""
    if matrix is None:
        return values
    if axis == 0:
        return (matrix @ values.reshape(values.shape[0], -1)).view(-1, *values.shape[1:])
    return torch.matmul(matrix, values) if axis == 1 else torch.matmul(values, matrix.T)


@lru_cache(maxsize=16)
def _spline_matrix(old: int, new: int, order: int) -> torch.Tensor | None:
    """Return the responses (new, old) of `scipy.ndimage.zoom` to single voxels; None if nothing changes."""
    if old == new:
        return None

    def zoomed(line: np.ndarray) -> np.ndarray:
        return ndimage.zoom(line, new / old, order=order, mode="nearest", grid_mode=True)

    return _responses(old, zoomed)


@lru_cache(maxsize=16)
def _coarse_matrix(old: int, new: int, order: int) -> torch.Tensor | None:
    """Return the responses (new, old) of `scipy.ndimage.map_coordinates` to single voxels; None if nothing changes."""
    if old == new:
        return None
    positions = (old / new) * (np.arange(new) + 0.5) - 0.5

    def mapped(line: np.ndarray) -> np.ndarray:
        return ndimage.map_coordinates(line, [positions], order=order, mode="nearest")

    return _responses(old, mapped)


def _responses(size: int, resample: Any) -> torch.Tensor:
    return torch.from_numpy(np.stack([resample(line) for line in np.eye(size)], axis=1))
