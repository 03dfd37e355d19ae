"""Blend overlapping tiles and hand out each block of the image as soon as no later tile touches it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from monai.data.utils import compute_importance_map

from medseg.inference.tiling.tiles import TileGrid
from medseg.transforms.restore.resample import memory_order

Carried = Literal["fp32", "fp16"]
# Sums are scaled so that the largest of a channel becomes this: below fp16's 65504 after rounding.
LARGEST = 2.0**15


@dataclass(frozen=True)
class HalfBlock:
    """Sums of weighted values in fp16 with one power of two a channel, and the sums of weights in fp32.

    Args:
        values: (K, …) fp16.
        scales: (K,) by which they are multiplied again.
        weights: (…) fp32.
    """

    values: torch.Tensor
    scales: torch.Tensor
    weights: torch.Tensor

    @classmethod
    def of(cls, block: torch.Tensor) -> HalfBlock:
        """Put a block (K + 1, …) aside; its memory may be released."""
        sums = block[:-1]
        largest = torch.stack([torch.stack(torch.aminmax(channel)).abs().max() for channel in sums])
        # A power of two changes no mantissa; a channel of zeros (or of NaN) keeps its scale of 1.
        scales = torch.exp2((largest / LARGEST).log2().ceil().nan_to_num(0.0, 0.0, 0.0))
        values = torch.empty_like(sums, dtype=torch.float16)
        for channel, scale in enumerate(scales.tolist()):
            values[channel] = sums[channel] / scale
        return cls(values, scales, block[-1].clone())

    def restored(self) -> torch.Tensor:
        """The block (K + 1, …) in fp32, with the axes in memory as they were."""
        shape = (len(self.values) + 1, *self.values.shape[1:])
        layout = memory_order(self.values)
        block = torch.empty_permuted(shape, layout, dtype=torch.float32, device=self.values.device)
        for channel, scale in enumerate(self.scales.tolist()):
            block[channel].copy_(self.values[channel]).mul_(scale)
        block[-1] = self.weights
        return block


def importance_map(
    tile: Sequence[int],
    mode: Literal["gaussian", "constant"],
    device: torch.device,
    sigma_scale: float | Sequence[float] = 0.125,
) -> torch.Tensor:
    """Weight of each voxel of a tile (*tile): MONAI's importance map (sigma of 1/8 tile, clamped at 1e-3) exactly."""
    return compute_importance_map(tuple(tile), mode=mode, sigma_scale=sigma_scale, device=device, dtype=torch.float32)


@dataclass(frozen=True)
class FinishedBlock:
    """A finished part of the blended image.

    Args:
        region: where it lies in the image, one slice an axis (padding removed).
        values: (K, *region) blended values, not finite where every tile was left out; None where no voxel got any.
    """

    region: tuple[slice, ...]
    values: torch.Tensor | None


class Blender:
    """Weighted mean of overlapping tiles, kept only where a later tile may still add to it.

    Tiles come in the grid's order: slabs along the longest axis, rows along the second within a slab. The image is cut
    into blocks at the tiles' starts along these two axes. A block comes into being with the first tile that touches
    it, and is finished with the last one: that of its own slab and row. So the blocks held are those of one slab's
    rows, and of two rows of the next. A block is as large as what tiles have touched of it: the last one, as large as a
    whole tile, is reached by several slabs where the last tile overlaps the one before by more than the others do.

        value(x) = Σ_tiles w(x − start) · prediction(x − start) / Σ_tiles w(x − start)

    Args:
        grid: the tiles.
        weight: (*tile) positive weights.
        carried: how sums wait for the next slab: "fp32", or "fp16" (half the memory; each sum is rounded once a slab,
            by at most 2⁻¹¹ of its value or 2⁻⁴⁰ of the largest in its channel and block).
    """

    def __init__(self, grid: TileGrid, weight: torch.Tensor, carried: Carried = "fp32") -> None:
        self.grid = grid
        self.order = grid.axis_order
        self.weight = weight.permute(self.order)
        self.carried = carried
        self.tile = tuple(grid.tile[axis] for axis in self.order)
        self.starts = tuple(grid.starts[axis] for axis in self.order)
        self.shape = tuple(grid.padded_shape[axis] for axis in self.order)
        self.cuts = tuple((*starts, size) for starts, size in zip(self.starts[:2], self.shape, strict=False))
        # Blocks by their number along the longest and the second axis.
        self.blocks: dict[tuple[int, int], torch.Tensor | HalfBlock] = {}

    def add(self, index: Sequence[int], prediction: torch.Tensor | None) -> Iterator[FinishedBlock]:
        """Add the prediction (K, *tile) of the tile at `index`, None to leave it out; yield the block it finishes."""
        if prediction is not None:
            self._accumulate(index, prediction.permute(0, *(axis + 1 for axis in self.order)))
        if all(i == len(s) - 1 for i, s in zip(index[2:], self.starts[2:], strict=True)):
            slab, row = index[0], index[1]
            yield self._finish(slab, row)
            if self.carried == "fp16":
                self._compress(slab, row)

    def _accumulate(self, index: Sequence[int], values: torch.Tensor) -> None:
        depth = tuple(
            slice(start[i], start[i] + size)
            for i, start, size in zip(index[2:], self.starts[2:], self.tile[2:], strict=True)
        )
        for p, planes in self.touched(0, index[0]):
            for q, rows in self.touched(1, index[1]):
                touched = (planes.stop - planes.start, rows.stop - rows.start)
                block = self._block((p, q), len(values), touched, values.device)
                target = (slice(0, planes.stop - planes.start), slice(0, rows.stop - rows.start), *depth)
                weight = self.weight[planes, rows]
                block[:-1][(slice(None), *target)].addcmul_(values[:, planes, rows], weight)
                block[-1][target] += weight

    def touched(self, axis: int, number: int) -> Iterator[tuple[int, slice]]:
        """The blocks along an axis that tile `number` touches, and which part of the tile lies in each."""
        cuts, first = self.cuts[axis], self.starts[axis][number]
        for i in range(number, len(cuts) - 1):
            begin, end = cuts[i] - first, min(cuts[i + 1] - first, self.tile[axis])
            if begin >= self.tile[axis]:
                return
            yield i, slice(begin, end)

    def _block(
        self, key: tuple[int, int], channels: int, touched: tuple[int, int], device: torch.device
    ) -> torch.Tensor:
        """The sums of one block (K + 1, planes, rows, …) of at least that many: values, and last the weights."""
        block = self.blocks.pop(key, None)
        if isinstance(block, HalfBlock):
            block = block.restored()
        if block is None:
            block = self._zeros(channels, touched, device)
        elif block.shape[1] < touched[0] or block.shape[2] < touched[1]:
            block = self._enlarged(block, touched)
        self.blocks[key] = block
        return block

    def _enlarged(self, block: torch.Tensor, touched: tuple[int, int]) -> torch.Tensor:
        planes, rows = block.shape[1:3]
        larger = self._zeros(len(block) - 1, (max(planes, touched[0]), max(rows, touched[1])), block.device)
        larger[:, :planes, :rows] = block
        return larger

    def _zeros(self, channels: int, size: tuple[int, int], device: torch.device) -> torch.Tensor:
        # In memory the axes keep the image's order, the tiles' own, so that sums run along contiguous voxels.
        layout = (0, *(self.order.index(axis) + 1 for axis in range(len(self.order))))
        shape = (channels + 1, *size, *self.shape[2:])
        return torch.empty_permuted(shape, layout, dtype=torch.float32, device=device).zero_()

    def _compress(self, slab: int, row: int) -> None:
        """Put the blocks aside that wait for the next slab."""
        for key, block in self.blocks.items():
            if key[0] > slab and key[1] <= row and isinstance(block, torch.Tensor):
                self.blocks[key] = HalfBlock.of(block)

    def _finish(self, slab: int, row: int) -> FinishedBlock:
        block = self.blocks.pop((slab, row), None)
        if isinstance(block, HalfBlock):  # no tile of this slab was added
            block = block.restored()
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
        if tuple(block.shape[1:3]) != size:  # tiles that would have touched the rest were left out
            block = self._enlarged(block, size)
        values = block[:-1].div_(block[-1:])[(slice(None), *inner)]
        back = [self.order.index(axis) + 1 for axis in range(len(self.order))]
        return FinishedBlock(tuple(region), values.permute(0, *back))
