import pytest
import torch

from medseg.inference.memory import block_bytes
from medseg.inference.tiling.blending import Blender, importance_map
from medseg.inference.tiling.streaming import Window

CHANNELS = 3
SHAPES = [(32, 20, 12), (29, 20, 12), (33, 19, 12), (30, 17, 9), (8, 8, 8), (11, 8, 8)]


def held_and_needed(shape: tuple[int, ...]) -> tuple[int, int]:
    """The most bytes held when a row is finished, and those of the voxels that tiles have touched until then."""
    grid = Window((8, 8, 8), overlap=0.5).over(shape)
    blender = Blender(grid, importance_map(grid.tile, "gaussian", torch.device("cpu")))
    touched = torch.zeros(grid.padded_shape, dtype=torch.bool)
    held = needed = 0
    for index in grid.visit():
        at = [grid.starts[axis][index[number]] for number, axis in enumerate(grid.axis_order)]
        region = [slice(0)] * 3
        for axis, start in zip(grid.axis_order, at, strict=True):
            region[axis] = slice(start, start + grid.tile[axis])
        touched[tuple(region)] = True
        for block in blender.add(index, torch.ones(CHANNELS, *grid.tile)):
            assert block.values is not None
            torch.testing.assert_close(block.values, torch.ones_like(block.values))
            kept = [other for other in blender.blocks.values() if isinstance(other, torch.Tensor)]
            held = max(held, sum(4 * other.numel() for other in kept) + 4 * block.values[0].numel() * (CHANNELS + 1))
            needed = max(needed, 4 * (CHANNELS + 1) * int(touched.sum()))
            touched[block.region] = False
    assert not touched.any()
    return held, needed


@pytest.mark.parametrize("shape", SHAPES)
def test_little_is_held_that_no_tile_has_touched(shape: tuple[int, ...]) -> None:
    held, needed = held_and_needed(shape)
    assert needed <= held <= 1.1 * needed  # blocks are boxes, what tiles have touched has a step


@pytest.mark.parametrize("shape", SHAPES)
def test_the_estimate_covers_what_is_held(shape: tuple[int, ...]) -> None:
    grid = Window((8, 8, 8), overlap=0.5).over(shape)
    held, _ = held_and_needed(shape)
    # at most: the smaller of two sizes of a block is there as well for the moment of being enlarged
    assert held <= block_bytes(grid, CHANNELS, "fp32") <= 2 * held
