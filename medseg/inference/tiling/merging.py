"""Run a network over the tiles of one image and pass on blended blocks as soon as they are finished."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch

from medseg.errors import NonFiniteError, ShapeError
from medseg.inference.tiling.blending import Blender, FinishedBlock
from medseg.inference.tiling.tiles import ImageSource, TileGrid

Index = tuple[int, ...]


def merge_tiles(
    image: ImageSource,
    grid: TileGrid,
    weight: torch.Tensor,
    predict: Callable[[torch.Tensor], torch.Tensor],
    consume: Callable[[FinishedBlock], None],
    batch_size: int = 1,
    device: torch.device | None = None,
    on_tiles: Callable[[int], None] | None = None,
    is_pipelined: bool = False,
    skipped: frozenset[Index] = frozenset(),
    dtype: torch.dtype = torch.float32,
) -> None:
    """Predict and blend every tile of an image.

    Args:
        image: (C, *image_shape) on the model grid.
        grid: positions of the tiles.
        weight: (*tile) blending weights. Blending happens on their device.
        predict: maps a batch of tiles (B, C, *tile) to values (B, K, *tile).
        consume: called with blocks in order; together they cover the image once.
        batch_size: tiles per forward pass.
        device: where the network runs; None is the image's device.
        on_tiles: called with the number of tiles just finished.
        is_pipelined: extract the next batch, and blend and consume the previous one, in a second thread while the
            network runs. The steps and their order do not change, so neither does the result.
        skipped: indices of tiles that are not predicted.
        dtype: type of the sums; see `Blender`.

    Raises:
        ShapeError: the network does not return one tensor with the tile's spatial shape.
        NonFiniteError: the network returns a value that is NaN or infinite.
    """
    blender = Blender(grid, weight, dtype)

    def extract(batch: Sequence[Index]) -> torch.Tensor:
        tiles = [grid.extract(image, index) for index in batch]
        stacked = tiles[0][None] if len(tiles) == 1 else torch.stack(tiles)
        return stacked if device is None else stacked.to(device)

    def blend(batch: Sequence[Index], values: torch.Tensor | None) -> None:
        for number, index in enumerate(batch):
            value = None if values is None else values[number].to(weight.device, torch.float32)
            for block in blender.add(index, value):
                consume(block)
                del block  # release a finished block before the network runs again
        if on_tiles is not None:
            on_tiles(len(batch))

    suspect: torch.Tensor | None = None

    def run(tiles: torch.Tensor) -> torch.Tensor:
        nonlocal suspect
        values = predict(tiles)
        _check(values, len(tiles), grid.tile)
        if values.device.type == "cpu":
            check_finite_values(values)
        else:  # looking at a value of every batch would make the CPU wait for the device; one look at the end does not
            bad = ~torch.isfinite(values).all()
            suspect = bad if suspect is None else suspect | bad
        return values

    batches = _batches(grid, batch_size, skipped)
    if is_pipelined:
        _run_pipelined(batches, extract, run, blend)
    else:
        for batch, is_predicted in batches:
            blend(batch, run(extract(batch)) if is_predicted else None)
    if suspect is not None and bool(suspect):
        raise NonFiniteError(
            "the network returned values that are NaN or infinite for a tile; check the intensities of the scan, and "
            "use precision fp32"
        )


def _batches(grid: TileGrid, size: int, skipped: frozenset[Index]) -> Iterator[tuple[Sequence[Index], bool]]:
    """Yield batches of tiles in the grid's order, and whether each is predicted. A skipped tile is its own batch."""
    batch: list[Index] = []
    for index in grid.visit():
        if batch and (index in skipped or len(batch) == size):
            yield tuple(batch), True
            batch = []
        if index in skipped:
            yield (index,), False
        else:
            batch.append(index)
    if batch:
        yield tuple(batch), True


def _run_pipelined(
    batches: Iterator[tuple[Sequence[Index], bool]],
    extract: Callable[[Sequence[Index]], torch.Tensor],
    run: Callable[[torch.Tensor], torch.Tensor],
    blend: Callable[[Sequence[Index], torch.Tensor | None], None],
) -> None:
    """Extract one batch ahead of the network and blend one batch behind it, both in the order of the tiles."""
    behind: deque[Future[None]] = deque()

    def step(batch: Sequence[Index], tiles: Future[torch.Tensor] | None) -> None:
        values = None if tiles is None else run(tiles.result())
        while behind:
            behind.pop().result()
        behind.append(worker.submit(blend, batch, values))

    with _single_threaded_worker() as worker:
        ahead: tuple[Sequence[Index], Future[torch.Tensor] | None] | None = None
        for batch, is_predicted in batches:
            following = (batch, worker.submit(extract, batch) if is_predicted else None)
            if ahead is not None:
                step(*ahead)
            ahead = following
        if ahead is not None:
            step(*ahead)
        while behind:
            behind.pop().result()


@contextmanager
def _single_threaded_worker() -> Iterator[ThreadPoolExecutor]:
    """Start a thread whose torch operations use one core, because more would compete with the network's threads."""
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(1, "medseg-blend") as worker:
        worker.submit(_use_one_core).result()
        torch.set_num_threads(threads)  # torch.set_num_threads also sets the default of threads started later
        yield worker


def _use_one_core() -> None:
    torch.get_num_threads()  # a thread copies the process's number when it first asks, which would undo the next line
    torch.set_num_threads(1)


def check_finite_values(values: torch.Tensor) -> None:
    """Check what a network returned; NaN compares with nothing, so that its label would be a silent background.

    Raises:
        NonFiniteError: a value is NaN or infinite.
    """
    # A finite sum proves that every value is finite, at a fraction of the time. Only an overflow needs the second look.
    if torch.isfinite(values.sum(dtype=torch.float32)):
        return
    bad = int(values.numel() - torch.isfinite(values).sum())
    if bad:
        raise NonFiniteError(
            f"the network returned {bad} of {values.numel()} values that are NaN or infinite for a tile; check the "
            "intensities of the scan, and use precision fp32"
        )


def _check(values: torch.Tensor, batch_size: int, tile: tuple[int, ...]) -> None:
    if not isinstance(values, torch.Tensor):
        raise ShapeError(f"the network must return one tensor of logits, found {type(values).__name__}")
    if values.shape[0] != batch_size or tuple(values.shape[2:]) != tile:
        raise ShapeError(
            f"the network must return logits for every voxel of a tile, shape {(batch_size, 'K', *tile)}; found "
            f"{tuple(values.shape)}; use medseg.inference.OverlapTileInferer for networks with valid convolutions"
        )
