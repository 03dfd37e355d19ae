"""How much memory preprocessing and merging take: the arithmetic of what their code holds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product
from math import ceil, prod

import numpy as np
import torch

from medseg.inference.blending import Blender
from medseg.inference.carried_block import Carried
from medseg.inference.model_input import slabs
from medseg.inference.tiles import TileGrid
from medseg.transforms.label_tail import CHUNK_VALUES, CHUNK_VOXELS, SLAB_PLANES
from medseg.transforms.resample import SeparableResampler
from medseg.transforms.sheared import voxels_at_once

F16, F32, F64 = 2, 4, 8
# Copies of the logits that an observer makes at a time: the probabilities, and what its arithmetic takes.
OBSERVED = 3


def preprocess_bytes(resampler: SeparableResampler, channels: int, takes_percentiles: bool) -> int:
    """While preprocessing: the image on the model grid, and the slab being interpolated or a channel's statistics.

    Args:
        resampler: from the scan's grid (which it calls the model's) to the model grid.
        channels: of the image.
        takes_percentiles: whether a normalisation sorts voxels.
    """
    model = prod(resampler.native_shape)
    statistics = model * (1 + (2 * F32 if takes_percentiles else 0))
    return F32 * channels * model + max(statistics, *(_slab_bytes(resampler, *slab) for slab in slabs(resampler)))


def _slab_bytes(resampler: SeparableResampler, part: slice, need: slice) -> int:
    """The most that lives while a slab is interpolated: each pass takes its input, its result and what it adds to it.

    The slab as read lives until the last pass is done.
    """
    sizes = [need.stop - need.start, *(axis.model_size for axis in resampler.axes[1:])]
    read = prod(sizes)
    given, peak = 0, read
    for axis in (*reversed(range(1, len(sizes))), 0):
        taps = resampler.taps[axis] if axis else resampler.taps[0][:, part] - need.start
        if len(taps) == 1 and np.array_equal(taps[0], taps[0, 0] + np.arange(taps.shape[1])):
            continue  # a view
        sizes[axis] = taps.shape[1]
        made = prod(sizes)
        peak = max(peak, read + given + min(len(taps), 2) * made)
        given = made
    return (F32 if all(axis.is_whole for axis in resampler.axes) else F64) * peak


def monai_preprocess_bytes(native_shape: Sequence[int], model_shape: Sequence[int], channels: int) -> int:
    """The same through MONAI's transforms: turned copies, and resampling in float64 with a position a voxel."""
    native, model = prod(native_shape), prod(model_shape)
    resampling = F64 * channels * native + (F64 * (2 * channels + 2 * len(model_shape)) + F32 * channels) * model
    normalizing = F32 * (3 * channels + 3) * model
    return 2 * F32 * channels * native + max(resampling, normalizing)


def block_bytes(grid: TileGrid, num_values: int, carried: Carried) -> int:
    """The most that `Blender` holds, found by visiting the rows of tiles as it does."""
    blender = Blender(grid, torch.empty(grid.tile, device="meta"), carried)
    num_slabs, num_rows = (len(starts) for starts in blender.starts[:2])
    depth = prod(blender.shape[2:])
    full, half = F32 * (num_values + 1) * depth, (F16 * num_values + F32) * depth
    sizes: dict[tuple[int, int], tuple[int, int]] = {}
    held: dict[tuple[int, int], int] = {}
    peak = 0
    for slab, row in product(range(num_slabs), range(num_rows)):
        for (p, planes), (q, rows) in product(blender.touched(0, slab), blender.touched(1, row)):
            before, size = held.get((p, q), 0), sizes.get((p, q), (0, 0))
            sizes[p, q] = (max(size[0], planes.stop - planes.start), max(size[1], rows.stop - rows.start))
            held[p, q] = full * prod(sizes[p, q])
            # for a moment a block is there twice where it is restored or enlarged
            peak = max(peak, sum(held.values()) + (before if before != held[p, q] else 0))
        del held[slab, row]
        if carried == "fp16":
            for p, q in held:
                if p > slab and q <= row:
                    held[p, q] = half * prod(sizes[p, q])
    return peak


def restore_bytes(
    grid: TileGrid,
    native_shape: Sequence[int],
    num_values: int,
    num_classes: int,
    halo: int,
    slab_values: int,
    is_together: bool,
    is_observed: bool = False,
) -> tuple[int, int]:
    """What restoring keeps between blocks, and what it takes for one.

    Args:
        grid: the tiles.
        native_shape: of the scan, in the order of the model's axes.
        num_values: channels that are blended.
        num_classes: logits a voxel.
        halo: planes the interpolation reaches back; 0 where nothing is interpolated.
        slab_values: see `LabelTail`.
        is_together: whether all values of a voxel are resampled at once (features, observers), or one after the other.
        is_observed: whether observers turn the logits into probabilities.
    """
    order = grid.axis_order
    zoom = [native_shape[axis] / grid.image_shape[axis] for axis in order]
    depth = prod(grid.padded_shape[axis] for axis in order[2:])
    widest = [max((b - a for a, b in pairwise(grid.starts[axis])), default=0) for axis in order[:2]]
    widest = [max(n, grid.padded_shape[axis] - grid.starts[axis][-1]) for n, axis in zip(widest, order, strict=False)]
    width = grid.padded_shape[order[1]]
    kept = F32 * num_values * halo * depth * (2 * width + widest[0] + halo)
    plane = (ceil(widest[1] * zoom[1]) + 1) * prod(native_shape[axis] for axis in order[2:])
    channels = num_values if is_together else 1
    planes = min(SLAB_PLANES, max(1, slab_values // (channels * plane)))
    block = F32 * num_values * prod(n + halo for n in widest) * depth if halo else 0
    slab = 3 * channels * plane * (ceil(planes / min(1.0, zoom[0])) + halo) if halo else 0
    if is_together:
        chunk = num_classes * plane * min(planes, max(1, CHUNK_VALUES // (num_classes * plane)))
        tail = slab + chunk + (3 if halo else 1) * chunk * num_values // num_classes + 4 * plane
        tail += OBSERVED * chunk if is_observed else 0
    else:
        tail = slab + 2 * planes * plane + 5 * max(CHUNK_VOXELS, plane)
    return kept, block + F32 * tail


def sheared_restore_bytes(spatial_dims: int, num_values: int, num_classes: int, is_observed: bool) -> int:
    """What restoring across a shear takes beside the values of the whole model grid."""
    positions = F64 * (spatial_dims + 3) + F32 * spatial_dims
    values = F32 * (num_values + (1 + OBSERVED * is_observed) * num_classes + 4)
    return voxels_at_once(num_values, num_classes) * (positions + values)
