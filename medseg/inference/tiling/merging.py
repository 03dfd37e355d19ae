"""Run a network over the tiles of one image and hand on blended blocks as they are finished."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch

from medseg.errors import ShapeError
from medseg.inference.tiling.blending import Blender, Carried, FinishedBlock
from medseg.inference.tiling.tiles import TileGrid

Index = tuple[int, ...]
Batch = tuple[Sequence[Index], bool]


def merge_tiles(
    image: torch.Tensor,
    grid: TileGrid,
    weight: torch.Tensor,
    predict: Callable[[torch.Tensor], torch.Tensor],
    consume: Callable[[FinishedBlock], None],
    batch_size: int = 1,
    device: torch.device | None = None,
    on_tiles: Callable[[int], None] | None = None,
    carried: Carried = "fp32",
    is_pipelined: bool = False,
    left_out: frozenset[Index] = frozenset(),
) -> None:
    """Predict and blend every tile of an image.

    Args:
        image: (C, *image_shape) on the model grid.
        grid: where the tiles lie.
        weight: (*tile) blending weights; their device is where blocks are blended.
        predict: batch of tiles (B, C, *tile) to values (B, K, *tile).
        consume: called with blocks that together cover the image once, in order.
        batch_size: tiles given to the network at once.
        device: where the network lives; None is the image's device.
        on_tiles: called with the number of tiles just finished.
        carried: see `Blender`.
        is_pipelined: cut the next batch, and blend and consume the last one, in a thread of its own while the network
            runs. The steps and their order are the same, so is the result.
        left_out: indices of tiles that are not predicted.

    Raises:
        ShapeError: the network returns anything but one tensor with the tile's spatial shape.
    """
    blender = Blender(grid, weight, carried)

    def cut(batch: Sequence[Index]) -> torch.Tensor:
        tiles = [grid.extract(image, index) for index in batch]
        together = tiles[0][None] if len(tiles) == 1 else torch.stack(tiles)
        return together if device is None else together.to(device)

    def blend(batch: Sequence[Index], values: torch.Tensor | None) -> None:
        for number, index in enumerate(batch):
            value = None if values is None else values[number].to(weight.device, torch.float32)
            for block in blender.add(index, value):
                consume(block)
                del block  # a finished block is released before the network runs again
        if on_tiles is not None:
            on_tiles(len(batch))

    def run(tiles: torch.Tensor) -> torch.Tensor:
        values = predict(tiles)
        _check(values, len(tiles), grid.tile)
        return values

    batches = _batches(grid, batch_size, left_out)
    if is_pipelined:
        _pipelined(batches, cut, run, blend)
        return
    for batch, is_predicted in batches:
        blend(batch, run(cut(batch)) if is_predicted else None)


def _batches(grid: TileGrid, size: int, left_out: frozenset[Index]) -> Iterator[Batch]:
    """Tiles in the grid's order, and whether they are predicted: one that is left out is a batch of its own."""
    batch: list[Index] = []
    for index in grid.visit():
        if batch and (index in left_out or len(batch) == size):
            yield tuple(batch), True
            batch = []
        if index in left_out:
            yield (index,), False
        else:
            batch.append(index)
    if batch:
        yield tuple(batch), True


def _pipelined(
    batches: Iterator[Batch],
    cut: Callable[[Sequence[Index]], torch.Tensor],
    run: Callable[[torch.Tensor], torch.Tensor],
    blend: Callable[[Sequence[Index], torch.Tensor | None], None],
) -> None:
    """One worker does all that is not the network, in the order of the tiles and at most one batch behind it."""
    behind: deque[Future[None]] = deque()

    def step(batch: Sequence[Index], tiles: Future[torch.Tensor] | None) -> None:
        values = None if tiles is None else run(tiles.result())
        while behind:
            behind.pop().result()
        behind.append(worker.submit(blend, batch, values))

    with _worker() as worker:
        ahead: tuple[Sequence[Index], Future[torch.Tensor] | None] | None = None
        for batch, is_predicted in batches:
            coming = (batch, worker.submit(cut, batch) if is_predicted else None)
            if ahead is not None:
                step(*ahead)
            ahead = coming
        if ahead is not None:
            step(*ahead)
        while behind:
            behind.pop().result()


@contextmanager
def _worker() -> Iterator[ThreadPoolExecutor]:
    """A thread whose torch operations stay in it: a second team of threads would fight the network's for the cores."""
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(1, "medseg-blend") as worker:
        worker.submit(_stay_alone).result()
        torch.set_num_threads(threads)  # the number for threads that are started later
        yield worker


def _stay_alone() -> None:
    torch.get_num_threads()  # a thread takes over the process's number at its first question, and only then
    torch.set_num_threads(1)


def _check(values: torch.Tensor, batch: int, tile: tuple[int, ...]) -> None:
    if not isinstance(values, torch.Tensor):
        raise ShapeError(f"the network must return one tensor of logits, found {type(values).__name__}")
    if values.shape[0] != batch or tuple(values.shape[2:]) != tile:
        raise ShapeError(
            f"the network must return a voxel of logits for every voxel of a tile {(batch, '·', *tile)}, found "
            f"{tuple(values.shape)}; networks with valid convolutions need medseg.inference.OverlapTileInferer"
        )
