"""Blend overlapping tiles and hand out each block of the image as soon as no later tile touches it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Literal

import torch

from medseg.inference.tiling.tiles import TileGrid


def importance_map(
    tile: Sequence[int],
    mode: Literal["gaussian", "constant"],
    device: torch.device,
    sigma_scale: float | Sequence[float] = 0.125,
) -> torch.Tensor:
    """Return the blending weight of each voxel of a tile (*tile), exactly as MONAI's `compute_importance_map` does.

    Args:
        tile: in voxels, one size per axis.
        mode: "gaussian" weights fall towards the tile's border and are at least 0.001; "constant" weights are 1.
        device: where tiles are blended.
        sigma_scale: standard deviation of the gaussian in tile sizes.
    """
    if mode == "constant":
        return torch.ones(tuple(tile), device=device)
    if mode != "gaussian":
        raise ValueError(f"mode must be gaussian or constant, found {mode!r}")
    scales = [sigma_scale] * len(tile) if isinstance(sigma_scale, int | float) else list(sigma_scale)
    weight = torch.ones((), device=device)
    for size, scale in zip(tile, scales, strict=True):
        reach = (size - 1) / 2
        position = torch.arange(-reach, reach + 1, dtype=torch.float32, device=device)
        weight = weight[..., None] * torch.exp(position**2 / (-2 * (size * scale) ** 2))
    return weight.clamp_(min=max(weight.min().item(), 1e-3))


@dataclass(frozen=True)
class FinishedBlock:
    """A part of the blended image that no later tile changes.

    Args:
        region: one slice of the image per axis, without padding.
        values: (K, *region) blended values; NaN where every tile was skipped. None if all tiles of the block were.
    """

    region: tuple[slice, ...]
    values: torch.Tensor | None


class Blender:
    """Compute the weighted mean of overlapping tiles, holding only what a later tile may still change.

    value(x) = Σ_tiles w(x − start) · prediction(x − start) / Σ_tiles w(x − start)

    Tiles come in the order of the grid: slabs along the longest axis, and within a slab rows along the second axis. The
    image is cut into blocks at the tiles' starts along these two axes. A block is allocated by the first tile that
    touches it and finished by the last, which is the last tile of its own slab and row. The accumulator therefore holds
    the blocks of one slab and two rows of the next one. A block is only as large as the part of it that tiles have
    touched, because the last block is as large as a whole tile and several slabs may reach into it.

    Args:
        grid: positions of the tiles.
        weight: (*tile) positive weights.
        dtype: type of the sums. In half precision every sum is rounded to it, as in nnU-Net.
    """

    def __init__(self, grid: TileGrid, weight: torch.Tensor, dtype: torch.dtype = torch.float32) -> None:
        self.grid = grid
        self.dtype = dtype
        self.order = grid.axis_order
        self.weight = weight.permute(self.order)
        self.tile = tuple(grid.tile[axis] for axis in self.order)
        self.starts = tuple(grid.starts[axis] for axis in self.order)
        self.shape = tuple(grid.padded_shape[axis] for axis in self.order)
        self.cuts = tuple((*starts, size) for starts, size in zip(self.starts[:2], self.shape, strict=False))
        # Keyed by the number of the block along the longest and the second axis.
        self.blocks: dict[tuple[int, int], torch.Tensor] = {}

    @staticmethod
    def num_bytes(grid: TileGrid, num_values: int, dtype: torch.dtype = torch.float32) -> int:
        """Return the largest size of the accumulator in bytes, by following its allocations without making them.

        Args:
            grid: positions of the tiles.
            num_values: channels of the tiles; one channel of weights is added to them.
            dtype: type of the sums.
        """
        blender = Blender(grid, torch.empty(grid.tile, device="meta"))
        sizes: dict[tuple[int, int], tuple[int, int]] = {}
        held = peak = 0
        for slab, row in product(*(range(len(starts)) for starts in blender.starts[:2])):
            for (p, planes), (q, rows) in product(blender._touched(0, slab), blender._touched(1, row)):
                old = sizes.get((p, q), (0, 0))
                new = max(old[0], planes.stop - planes.start), max(old[1], rows.stop - rows.start)
                if new != old:  # while a block is enlarged, its old copy exists as well
                    sizes[p, q] = new
                    peak = max(peak, held + prod(new))
                    held += prod(new) - prod(old)
            held -= prod(sizes.pop((slab, row)))
        return dtype.itemsize * (num_values + 1) * peak * prod(blender.shape[2:])

    def add(self, index: Sequence[int], prediction: torch.Tensor | None) -> Iterator[FinishedBlock]:
        """Add one tile and yield the block that it finishes, if any.

        Args:
            index: number of the tile along each axis, in the grid's axis order.
            prediction: (K, *tile), or None if the tile is skipped.
        """
        if prediction is not None:
            self._accumulate(index, prediction.permute(0, *(axis + 1 for axis in self.order)))
        if all(i == len(s) - 1 for i, s in zip(index[2:], self.starts[2:], strict=True)):
            yield self._finish(index[0], index[1])

    def _accumulate(self, index: Sequence[int], values: torch.Tensor) -> None:
        depth = tuple(
            slice(start[i], start[i] + size)
            for i, start, size in zip(index[2:], self.starts[2:], self.tile[2:], strict=True)
        )
        for p, planes in self._touched(0, index[0]):
            for q, rows in self._touched(1, index[1]):
                size = (planes.stop - planes.start, rows.stop - rows.start)
                block = self._block((p, q), len(values), size, values.device)
                target = (slice(0, size[0]), slice(0, size[1]), *depth)
                weight = self.weight[planes, rows]
                if self.dtype == torch.float32:
                    block[:-1][(slice(None), *target)].addcmul_(values[:, planes, rows], weight)
                else:  # the product is not rounded, only the sum; by channel, to hold one product at a time
                    for total, value in zip(block[:-1], values, strict=True):
                        total[target] += value[planes, rows] * weight
                block[-1][target] += weight

    def _touched(self, axis: int, number: int) -> Iterator[tuple[int, slice]]:
        """Yield the blocks along an axis that tile `number` touches, and the part of the tile that lies in each."""
        cuts, first = self.cuts[axis], self.starts[axis][number]
        for i in range(number, len(cuts) - 1):
            begin, end = cuts[i] - first, min(cuts[i + 1] - first, self.tile[axis])
            if begin >= self.tile[axis]:
                return
            yield i, slice(begin, end)

    def _block(self, key: tuple[int, int], channels: int, size: tuple[int, int], device: torch.device) -> torch.Tensor:
        """Return the sums of one block (K + 1, planes, rows, …), weights last, with at least `size` planes and rows."""
        block = self.blocks.get(key)
        if block is None:
            block = self.blocks[key] = self._zeros(channels, size, device)
        elif block.shape[1] < size[0] or block.shape[2] < size[1]:
            block = self.blocks[key] = self._enlarged(block, size)
        return block

    def _enlarged(self, block: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        planes, rows = block.shape[1:3]
        larger = self._zeros(len(block) - 1, (max(planes, size[0]), max(rows, size[1])), block.device)
        larger[:, :planes, :rows] = block
        return larger

    def _zeros(self, channels: int, size: tuple[int, int], device: torch.device) -> torch.Tensor:
        # The axes keep the image's order in memory, which is also the tiles', so that sums run over contiguous voxels.
        layout = (0, *(self.order.index(axis) + 1 for axis in range(len(self.order))))
        shape = (channels + 1, *size, *self.shape[2:])
        return torch.empty_permuted(shape, layout, dtype=self.dtype, device=device).zero_()

    def _finish(self, slab: int, row: int) -> FinishedBlock:
        block = self.blocks.pop((slab, row), None)
        region: list[slice] = [slice(0)] * len(self.order)
        inner: list[slice] = []
        bounds = [(self.cuts[axis][i], self.cuts[axis][i + 1]) for axis, i in enumerate((slab, row))]
        for (begin, end), axis in zip([*bounds, *((0, n) for n in self.shape[2:])], self.order, strict=True):
            pad, length = self.grid.pad_before[axis], self.grid.image_shape[axis]
            low, high = max(begin - pad, 0), min(end - pad, length)
            region[axis] = slice(low, high)
            inner.append(slice(low + pad - begin, high + pad - begin))
        if block is None:
            return FinishedBlock(tuple(region), None)
        size = (bounds[0][1] - bounds[0][0], bounds[1][1] - bounds[1][0])
        if tuple(block.shape[1:3]) != size:  # the tiles that would have touched the rest were skipped
            block = self._enlarged(block, size)
        values = block[:-1].div_(block[-1:])[(slice(None), *inner)]
        back = [self.order.index(axis) + 1 for axis in range(len(self.order))]
        return FinishedBlock(tuple(region), values.permute(0, *back))
