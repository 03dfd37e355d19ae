"""Run a network over the tiles of one image and yield blended blocks as they are finished."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import torch

from medseg.errors import ShapeError
from medseg.inference.blending import Blender, FinishedBlock
from medseg.inference.tiles import TileGrid


def merge_tiles(
    image: torch.Tensor,
    grid: TileGrid,
    weight: torch.Tensor,
    predict: Callable[[torch.Tensor], torch.Tensor],
    batch_size: int = 1,
    device: torch.device | None = None,
    on_tiles: Callable[[int], None] | None = None,
) -> Iterator[FinishedBlock]:
    """Predict and blend every tile of an image.

    Args:
        image: (C, *image_shape) on the model grid.
        grid: where the tiles lie.
        weight: (*tile) blending weights; their device is where blocks are blended.
        predict: batch of tiles (B, C, *tile) to values (B, K, *tile).
        batch_size: tiles given to the network at once.
        device: where the network lives; None is the image's device.
        on_tiles: called with the number of tiles just finished.

    Yields:
        Blocks that together cover the image once.

    Raises:
        ShapeError: the network returns anything but one tensor with the tile's spatial shape.
    """
    blender = Blender(grid, weight)
    indices = grid.visit()
    while chunk := list(islice(indices, batch_size)):
        tiles = torch.stack([grid.extract(image, index) for index in chunk])
        values = predict(tiles if device is None else tiles.to(device))
        _check(values, len(chunk), grid.tile)
        for index, value in zip(chunk, values, strict=True):
            yield from blender.add(index, value.to(weight.device, torch.float32))
        del values, value  # or the next pass through the network would find the last one's output still in memory
        if on_tiles is not None:
            on_tiles(len(chunk))


def _check(values: torch.Tensor, batch: int, tile: tuple[int, ...]) -> None:
    if not isinstance(values, torch.Tensor):
        raise ShapeError(f"the network must return one tensor of logits, found {type(values).__name__}")
    if values.shape[0] != batch or tuple(values.shape[2:]) != tile:
        raise ShapeError(
            f"the network must return a voxel of logits for every voxel of a tile {(batch, '·', *tile)}, found "
            f"{tuple(values.shape)}; networks with valid convolutions need medseg.inference.OverlapTile"
        )
