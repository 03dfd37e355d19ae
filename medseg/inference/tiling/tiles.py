"""Lay the tiles of a sliding window over an image, and skip those that hold only air."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from typing import Any, Protocol

import numpy as np
import torch
from torch.nn import functional as F

from medseg.errors import ShapeError
from medseg.transforms.restore.resample import SeparableResampler, longest_first


class ImageSource(Protocol):
    """An image from which tiles are cut: a tensor, or an object that computes boxes of it on demand."""

    @property
    def shape(self) -> Sequence[int]:
        """Channels and voxels, (C, *image_shape)."""
        ...

    def __getitem__(self, index: Any, /) -> torch.Tensor:
        """Return a box; the index is one slice for the channels and one per axis."""
        ...


@dataclass(frozen=True)
class TileGrid:
    """Tiles over one image, at the positions of `monai.inferers.sliding_window_inference`.

    Args:
        image_shape: spatial shape of the image in voxels.
        tile: spatial shape of a tile in voxels.
        starts: for each axis the first voxel of its tiles in the padded image, ascending.
        pad_before: voxels of padding before each axis. Only axes shorter than the tile are padded.
        pad_value: value of the padding where `pad_mode` is "constant".
        pad_mode: a mode of `torch.nn.functional.pad`.
        order: axes in the order in which tiles are visited, the slowest first, e.g. that of an image that this one is a
            part of; None is the longest first.
    """

    image_shape: tuple[int, ...]
    tile: tuple[int, ...]
    starts: tuple[tuple[int, ...], ...]
    pad_before: tuple[int, ...]
    pad_value: float = 0.0
    pad_mode: str = "constant"
    order: tuple[int, ...] | None = None

    @property
    def padded_shape(self) -> tuple[int, ...]:
        """Shape of the image after padding it to at least one tile."""
        return tuple(max(n, t) for n, t in zip(self.image_shape, self.tile, strict=True))

    @property
    def num_tiles(self) -> int:
        """Number of tiles."""
        return prod(len(s) for s in self.starts)

    @property
    def axis_order(self) -> tuple[int, ...]:
        """Axes from the slowest to the fastest. Visiting the longest first keeps unfinished slabs small."""
        return longest_first(self.image_shape) if self.order is None else self.order

    @property
    def largest_block(self) -> tuple[int, ...]:
        """Largest part of the image that one row of tiles can finish, in `axis_order`."""
        order = self.axis_order
        sizes = []
        for axis in order[:2]:
            steps = [b - a for a, b in pairwise((*self.starts[axis], self.padded_shape[axis]))]
            sizes.append(max(steps))
        return (*sizes, *(self.padded_shape[axis] for axis in order[2:]))

    def visit(self) -> Iterator[tuple[int, ...]]:
        """Yield the index of every tile, in `axis_order`; the first axis changes slowest."""
        counts = [len(self.starts[axis]) for axis in self.axis_order]
        yield from np.ndindex(*counts)

    def extract(self, image: ImageSource, index: Sequence[int]) -> torch.Tensor:
        """Return the tile at `index` (in `axis_order`) of an image (C, *image_shape), padded where it is too short."""
        begin = [0] * len(self.tile)
        for axis, i in zip(self.axis_order, index, strict=True):
            begin[axis] = self.starts[axis][i]
        part = image[(slice(None), *(slice(b, b + t) for b, t in zip(begin, self.tile, strict=True)))]
        padding: list[int] = []
        for axis in reversed(range(len(self.tile))):
            missing = self.tile[axis] - part.shape[axis + 1]
            padding += [self.pad_before[axis], missing - self.pad_before[axis]]
        if not any(padding):
            return part
        return F.pad(part, padding, self.pad_mode, self.pad_value if self.pad_mode == "constant" else None)


def lay_tiles(
    image_shape: Sequence[int],
    tile: Sequence[int | None],
    overlap: float | Sequence[float],
    pad_value: float = 0.0,
    pad_mode: str = "constant",
) -> TileGrid:
    """Lay tiles over an image as MONAI does: in steps of ⌊tile · (1 − overlap)⌋, the last tile moved back inside.

    Args:
        image_shape: spatial shape in voxels.
        tile: tile shape in voxels; None, 0 or less takes the image's size along that axis.
        overlap: fraction of a tile shared with its neighbour, in [0, 1); one number, or one per axis.
        pad_value: value around images smaller than a tile.
        pad_mode: how images smaller than a tile are padded; a mode of `torch.nn.functional.pad`.

    Raises:
        ShapeError: the numbers of axes differ, an axis of the image is empty, or the overlap is out of range.
    """
    dims = len(image_shape)
    if len(tile) != dims:
        raise ShapeError(
            f"a tile of {len(tile)} sizes {tuple(tile)} cannot cover an image of shape {tuple(image_shape)}"
        )
    if min(image_shape) < 1:
        raise ShapeError(f"an image must have at least one voxel along every axis, found shape {tuple(image_shape)}")
    overlaps = [float(overlap)] * dims if isinstance(overlap, int | float) else [float(o) for o in overlap]
    if len(overlaps) != dims or not all(0 <= o < 1 for o in overlaps):
        raise ShapeError(f"overlap must be one number, or one per axis, in [0, 1), found {overlap}")
    size = tuple(int(t) if t and t > 0 else int(n) for n, t in zip(image_shape, tile, strict=True))
    starts = tuple(_starts(max(n, t), t, o) for n, t, o in zip(image_shape, size, overlaps, strict=True))
    before = tuple(max(t - n, 0) // 2 for n, t in zip(image_shape, size, strict=True))
    return TileGrid(tuple(int(n) for n in image_shape), size, starts, before, pad_value, pad_mode)


def _starts(length: int, tile: int, overlap: float) -> tuple[int, ...]:
    step = max(int(tile * (1 - overlap)), 1)
    last = length - tile
    return (*range(0, last, step), last)


def tiles_of_box(grid: TileGrid, box: Sequence[slice]) -> tuple[TileGrid, tuple[int, ...]]:
    """Return the tiles that touch a box of an image, as the tiles of the part of the image that they cover.

    Blending these tiles alone gives the same values inside the box as blending all, because they come in the same
    order. Values outside the box lack tiles.

    Args:
        grid: tiles of the whole image.
        box: voxels along each axis.

    Returns:
        The tiles, and the first voxel of the part along each axis.
    """
    starts, origin, shape = [], [], []
    for part, all_starts, size, length, pad in zip(
        box, grid.starts, grid.tile, grid.image_shape, grid.pad_before, strict=True
    ):
        used = [s for s in all_starts if s - pad < part.stop and s - pad + size > part.start]
        first, last = max(used[0] - pad, 0), min(used[-1] - pad + size, length)
        origin.append(first)
        shape.append(last - first)
        starts.append(tuple(s - first for s in used))
    part_of_grid = replace(grid, image_shape=tuple(shape), starts=tuple(starts), order=grid.axis_order)
    return part_of_grid, tuple(origin)


def air_tiles(intensity: torch.Tensor, below: float, grid: TileGrid, rim: int) -> frozenset[tuple[int, ...]]:
    """Return the indices (in the grid's axis order) of the tiles that hold only air.

    Args:
        intensity: (*image_shape) first channel on the model grid, in the file's own unit.
        below: voxels below this intensity are air.
        grid: positions of the tiles.
        rim: voxels around a tile that must be air as well.
    """
    # Reducing axis by axis computes the maximum of each tile, and shares the work where tiles overlap.
    largest = intensity
    for axis in range(intensity.ndim):
        pad, length = grid.pad_before[axis], grid.image_shape[axis]
        parts = []
        for start in grid.starts[axis]:
            low, high = max(start - pad - rim, 0), min(start - pad + grid.tile[axis] + rim, length)
            parts.append(largest.narrow(axis, low, high - low).amax(axis, keepdim=True))
        largest = torch.cat(parts, axis)
    air = (largest < below).permute(grid.axis_order).nonzero()
    return frozenset(tuple(index) for index in air.tolist())


def label_as_background(
    labels: torch.Tensor, tiles: Iterable[Sequence[int]], grid: TileGrid, resampler: SeparableResampler, background: int
) -> None:
    """Label every native voxel as background that is interpolated from a voxel of a skipped tile.

    Args:
        labels: (*native shape), changed in place.
        tiles: indices of the skipped tiles, in the grid's axis order.
        grid: positions of the tiles.
        resampler: from the model grid to the native grid.
        background: value of the background label.
    """
    target = labels.permute(*resampler.native_axes)
    for index in tiles:
        region = []
        for place, (axis, i) in enumerate(zip(grid.axis_order, index, strict=True)):
            first = grid.starts[axis][i] - grid.pad_before[axis]
            taps = resampler.taps[place]
            touched = np.flatnonzero(((taps >= first) & (taps < first + grid.tile[axis])).any(axis=0))
            region.append(slice(int(touched[0]), int(touched[-1]) + 1) if len(touched) else slice(0, 0))
        target[tuple(region)] = background
