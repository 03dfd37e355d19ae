"""Predict, blend and restore tiles exactly as nnU-Net does: in its order, and with its half-precision sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, prod

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from medseg.errors import NonFiniteError
from medseg.inference.exact.exact_grid import ExactGrid, ResamplingStep
from medseg.inference.tiling.blending import Blender, FinishedBlock
from medseg.inference.tiling.merging import merge_tiles
from medseg.inference.tiling.streaming import NativeAssembly, Window
from medseg.inference.tiling.tiles import TileGrid
from medseg.transforms.restore.label_decision import LabelDecision, LabelRestorer, Observer
from medseg.transforms.restore.resample import SeparableResampler

# nnU-Net visits tiles in the order of the axes. Sums in half precision depend on their order.
ORDER = (0, 1, 2)
# nnU-Net's gaussian weights have this value in the middle of a tile.
LARGEST_WEIGHT = 10.0


@dataclass(frozen=True)
class ExactWindow(Window):
    """nnU-Net's sliding window over three axes: tiles at equal distances, weights and sums in half precision."""

    def lay_tiles(self, shape: Sequence[int]) -> TileGrid:
        """Return the tiles over an image of that shape."""
        starts = tuple(
            _starts(max(length, size), size, 1 - self.overlap) for length, size in zip(shape, self.tile, strict=True)
        )
        before = tuple(max(size - length, 0) // 2 for length, size in zip(shape, self.tile, strict=True))
        return TileGrid(tuple(shape), self.tile, starts, before, order=ORDER)

    @property
    def weight(self) -> torch.Tensor:
        """Blending weights of a tile's voxels, in half precision."""
        if self.blending == "constant":
            return torch.ones(self.tile, dtype=torch.float16)
        impulse = np.zeros(self.tile)
        impulse[tuple(size // 2 for size in self.tile)] = 1
        sigmas = [size / 8 if size > 1 else 0.0 for size in self.tile]
        weight = gaussian_filter(impulse, sigmas, 0, mode="constant", cval=0)
        half = torch.from_numpy(weight / (weight.max() / LARGEST_WEIGHT)).half()
        half[half == 0] = half[half != 0].min()
        return half


def _starts(length: int, tile: int, step: float) -> tuple[int, ...]:
    """Return the first voxels of tiles at equal distances of at most step · tile."""
    if tile == 1:  # the slices of a 2D network, which nnU-Net predicts once each
        return tuple(range(length))
    last = length - tile
    count = ceil(last / (tile * step)) + 1
    distance = last / (count - 1) if count > 1 else 0.0
    return tuple(int(np.round(distance * number)) for number in range(count))


def predict_exact(
    image: torch.Tensor,
    grid: ExactGrid,
    step: ResamplingStep,
    predict: Callable[[torch.Tensor], torch.Tensor],
    decision: LabelDecision,
    window: Window,
    num_members: int = 1,
    observers: Sequence[Observer] = (),
    on_tiles: Callable[[int, int], None] | None = None,
) -> torch.Tensor:
    """Predict an image and return the labels of the scan's box, without a volume of classes × voxels.

    `exact_bytes` states how much memory this takes; keep the two in step.

    Args:
        image: (C, *model grid), from `exact_image`.
        grid: as `exact_image` returned it.
        step: how logits are resampled.
        predict: maps tiles (B, C, *tile) to logits (B, members · K, *tile), those of one member after the other.
        decision: turns logits into label values.
        window: tiles and blending.
        num_members: networks of an ensemble. Each one's logits are blended before they are averaged.
        observers: receive the logits of every voxel of the box.
        on_tiles: called with (tiles done, total number of tiles).

    Returns:
        (*grid.box_shape) integers.

    Raises:
        NonFiniteError: logits exceed the range of half precision, as in nnU-Net.
    """
    tiles = window.lay_tiles(image.shape[1:])
    resampler = SeparableResampler(grid.logits_map(step), axis_order=ORDER)
    out = torch.empty(grid.box_shape, dtype=decision.dtype)
    restorer = LabelRestorer(
        resampler, decision, observers=observers, slab_values=window.slab_values,
        rounds_to_half=rounds_to_half(grid, step),
    )  # fmt: skip
    assembly = NativeAssembly(restorer, out, decision.num_channels, torch.device("cpu"))
    merge_exact(image, tiles, window, predict, assembly.add, num_members, on_tiles)
    return out


def rounds_to_half(grid: ExactGrid, step: ResamplingStep) -> bool:
    """Return whether logits are rounded to half precision after resampling: by SciPy they are, by PyTorch not."""
    return step.method == "spline" and grid.box_shape != grid.model_shape


def merge_exact(
    image: torch.Tensor,
    tiles: TileGrid,
    window: Window,
    predict: Callable[[torch.Tensor], torch.Tensor],
    consume: Callable[[FinishedBlock], None],
    num_members: int = 1,
    on_tiles: Callable[[int, int], None] | None = None,
) -> None:
    """Predict and blend every tile; pass on blocks (K, …) of logits in half precision. See `predict_exact`."""
    done = 0

    def count(number: int) -> None:
        nonlocal done
        done += number
        if on_tiles is not None:
            on_tiles(done, tiles.num_tiles)

    def average(block: FinishedBlock) -> None:
        assert block.values is not None  # no tile is skipped
        values = block.values
        if num_members > 1:
            members = values.chunk(num_members)
            values = members[0].clone()
            for member in members[1:]:
                values += member
            values /= num_members
        # By channel, because the sum in fp32 copies what it adds up.
        if not all(torch.isfinite(channel.sum(dtype=torch.float32)) for channel in values):
            raise NonFiniteError(
                "logits exceed the range of half precision, in which nnU-Net blends them; nnU-Net cannot predict this "
                "scan either"
            )
        consume(FinishedBlock(block.region, values))

    weight = window.weight if isinstance(window, ExactWindow) else torch.ones(window.tile, dtype=torch.float16)
    merge_tiles(
        image, tiles, weight, predict, average, window.batch_size, on_tiles=count, is_pipelined=window.is_pipelined,
        dtype=torch.float16,
    )  # fmt: skip


def exact_bytes(
    grid: ExactGrid,
    step: ResamplingStep,
    num_channels: int,
    decision: LabelDecision,
    window: Window,
    num_members: int,
    is_observed: bool,
) -> tuple[int, int]:
    """Estimate the memory that `predict_exact` takes beside the network, the labels and the observers.

    Args:
        grid: of the scan, or a larger one.
        step, decision, window, num_members: as of `predict_exact`.
        num_channels: channels of the image.
        is_observed: True if there are observers.

    Returns:
        Bytes held from the first tile to the last, and bytes needed to blend and restore one batch.
    """
    tiles, float32, num_values = window.lay_tiles(grid.model_shape), 4, decision.num_channels
    batch = float32 * window.batch_size * prod(window.tile)
    held = float32 * num_channels * prod(grid.model_shape) + (2 if window.is_pipelined else 1) * num_channels * batch
    held += Blender.num_bytes(tiles, num_members * num_values, torch.float16)
    resampler = SeparableResampler(grid.logits_map(step), axis_order=ORDER)
    kept, extended = NativeAssembly.num_bytes(resampler, tiles.largest_block, num_values)
    restoring = LabelRestorer.num_bytes(
        resampler, tiles.largest_block, num_values, num_values, False, is_observed, window.slab_values
    )
    # The logits of a batch, the product of one channel with its weights, one channel of the block in fp32, and the mean
    # of the members in half precision.
    blending = num_members * num_values * batch + float32 * (prod(window.tile) + prod(tiles.largest_block))
    if num_members > 1:
        blending += torch.float16.itemsize * num_values * prod(tiles.largest_block)
    return held + kept, blending + extended + restoring
