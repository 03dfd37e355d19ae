"""Blend overlapping tiles and hand out each block of the image as soon as no later tile touches it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from monai.data.utils import compute_importance_map

from medseg.inference.tiles import TileGrid


def importance_map(tile: Sequence[int], mode: Literal["gaussian", "constant"], device: torch.device) -> torch.Tensor:
    """Weight of each voxel of a tile (*tile): MONAI's importance map (sigma of 1/8 tile, clamped at 1e-3) exactly."""
    return compute_importance_map(tuple(tile), mode=mode, sigma_scale=0.125, device=device, dtype=torch.float32)


@dataclass(frozen=True)
class FinishedBlock:
    """A finished part of the blended image.

    Args:
        region: where it lies in the image, one slice an axis (padding removed).
        values: (K, *region) blended values; valid until the next block is asked for.
    """

    region: tuple[slice, ...]
    values: torch.Tensor


class Blender:
    """Weighted mean of overlapping tiles, kept only where a later tile may still add to it.

    Tiles come in the grid's order: slabs along the longest axis, rows along the second within a slab. The image is cut
    into rows of blocks at the tiles' starts along the second axis. When a row of tiles is complete, the planes of its
    first block up to the next slab's start are finished; only the planes beyond are carried on.

        value(x) = Σ_tiles w(x − start) · prediction(x − start) / Σ_tiles w(x − start)

    Args:
        grid: the tiles.
        weight: (*tile) positive weights.
    """

    def __init__(self, grid: TileGrid, weight: torch.Tensor) -> None:
        self.grid = grid
        self.order = grid.axis_order
        self.weight = weight.permute(self.order)
        self.tile = tuple(grid.tile[axis] for axis in self.order)
        self.starts = tuple(grid.starts[axis] for axis in self.order)
        self.shape = tuple(grid.padded_shape[axis] for axis in self.order)
        self.row_cuts = (*self.starts[1], self.shape[1])
        self.blocks: list[torch.Tensor | None] = [None] * len(self.starts[1])
        self.is_current = [False] * len(self.starts[1])

    def add(self, index: Sequence[int], prediction: torch.Tensor) -> Iterator[FinishedBlock]:
        """Add the prediction (K, *tile) of the tile at `index`; yield the block it finishes, if any."""
        values = prediction.permute(0, *(axis + 1 for axis in self.order))
        slab, row = index[0], index[1]
        first, last = self.starts[1][row], self.starts[1][row] + self.tile[1]
        depth = tuple(
            slice(self.starts[d][index[d]], self.starts[d][index[d]] + self.tile[d]) for d in range(2, len(index))
        )
        for q in range(row, len(self.blocks)):
            begin, end = self.row_cuts[q], min(self.row_cuts[q + 1], last)
            if begin >= last:
                break
            block = self._current(q, values)
            source = slice(begin - first, end - first)
            target = (slice(None), slice(0, end - begin), *depth)
            block[:-1][(slice(None), *target)].addcmul_(values[:, :, source], self.weight[:, source])
            block[-1][target] += self.weight[:, source]
        if all(i == len(s) - 1 for i, s in zip(index[2:], self.starts[2:], strict=True)):
            yield self._finish(slab, row)
            self._carry(slab, row)

    def _current(self, q: int, like: torch.Tensor) -> torch.Tensor:
        """The block of row interval q over all planes of the current slab, what earlier slabs added included."""
        held = self.blocks[q]
        if self.is_current[q] and held is not None:
            return held
        width = self.row_cuts[q + 1] - self.row_cuts[q]
        block = torch.zeros(
            (like.shape[0] + 1, self.tile[0], width, *self.shape[2:]), dtype=torch.float32, device=self.weight.device
        )
        if held is not None:
            block[:, : held.shape[1]] = held
        self.blocks[q], self.is_current[q] = block, True
        return block

    def _finished_planes(self, slab: int) -> int:
        starts = self.starts[0]
        return (starts[slab + 1] if slab + 1 < len(starts) else self.shape[0]) - starts[slab]

    def _held(self, row: int) -> torch.Tensor:
        block = self.blocks[row]
        if block is None:
            raise RuntimeError(f"tiles were not added in the grid's order: row {row} is finished before it was begun")
        return block

    def _finish(self, slab: int, row: int) -> FinishedBlock:
        block = self._held(row)
        planes = self._finished_planes(slab)
        values = block[:-1, :planes].div_(block[-1:, :planes])
        begins = [self.starts[0][slab], self.row_cuts[row], *([0] * (len(self.shape) - 2))]
        region: list[slice] = [slice(0)] * len(self.order)
        inner: list[slice] = []
        for begin, size, axis in zip(begins, values.shape[1:], self.order, strict=True):
            pad, length = self.grid.pad_before[axis], self.grid.image_shape[axis]
            low, high = max(begin - pad, 0), min(begin + size - pad, length)
            region[axis] = slice(low, high)
            inner.append(slice(low + pad - begin, high + pad - begin))
        values = values[(slice(None), *inner)]
        back = [self.order.index(axis) + 1 for axis in range(len(self.order))]
        return FinishedBlock(tuple(region), values.permute(0, *back))

    def _carry(self, slab: int, row: int) -> None:
        """Keep only the planes that the next slab still adds to."""
        block = self._held(row)
        rest = block[:, self._finished_planes(slab) :]
        self.blocks[row] = rest.clone() if rest.shape[1] else None
        self.is_current[row] = False
