"""Tests of the accumulator of overlapping tiles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.data.utils import compute_importance_map

from medseg.inference.tiling.blending import Blender, importance_map
from medseg.inference.tiling.tiles import lay_tiles

CHANNELS = 3
SHAPES = [(32, 20, 12), (29, 20, 12), (33, 19, 12), (30, 17, 9), (8, 8, 8), (11, 8, 8)]


class MeasuredBlender(Blender):
    """A Blender that records the most bytes it held, copies of blocks being enlarged included."""

    peak = 0

    def _zeros(self, channels: int, size: tuple[int, int], device: torch.device) -> torch.Tensor:
        block = super()._zeros(channels, size, device)
        self.peak = max(self.peak, block.nbytes + sum(other.nbytes for other in self.blocks.values()))
        return block


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.7])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_accumulator_holds_what_it_reports_and_little_more_than_needed(
    shape: tuple[int, ...], overlap: float
) -> None:
    grid = lay_tiles(shape, (8, 8, 8), overlap)
    blender = MeasuredBlender(grid, importance_map(grid.tile, "gaussian", torch.device("cpu")))
    unfinished = torch.zeros(grid.padded_shape, dtype=torch.bool)
    needed = 0
    for index in grid.visit():
        region = [slice(0)] * 3
        for number, axis in enumerate(grid.axis_order):
            start = grid.starts[axis][index[number]]
            region[axis] = slice(start, start + grid.tile[axis])
        unfinished[tuple(region)] = True
        for block in blender.add(index, torch.ones(CHANNELS, *grid.tile)):
            assert block.values is not None
            torch.testing.assert_close(block.values, torch.ones_like(block.values))
            needed = max(needed, 4 * (CHANNELS + 1) * int(unfinished.sum()))
            unfinished[block.region] = False
    assert not unfinished.any()
    assert blender.peak == Blender.num_bytes(grid, CHANNELS)
    # Blocks are boxes, and one of them exists twice while it is enlarged.
    assert needed <= blender.peak <= 2 * needed


@pytest.mark.parametrize("mode", ["gaussian", "constant"])
@pytest.mark.parametrize(("tile", "sigma_scale"), [((12, 9, 5), 0.125), ((31, 16), (0.1, 0.3)), ((1, 7, 8), 0.01)])
def test_the_weights_of_a_tile_are_those_of_monai(mode: Any, tile: tuple[int, ...], sigma_scale: Any) -> None:
    expected = compute_importance_map(tile, mode, sigma_scale, dtype=torch.float32)
    assert torch.equal(importance_map(tile, mode, torch.device("cpu"), sigma_scale), expected)
    with pytest.raises(ValueError, match="gausian"):
        importance_map(tile, "gausian", torch.device("cpu"))  # type: ignore[arg-type]
