"""Tests of the positions of tiles against MONAI's."""

from __future__ import annotations

import itertools

import pytest
import torch
from monai.data.utils import dense_patch_slices
from monai.inferers.utils import _get_scan_interval

from medseg.errors import ShapeError
from medseg.inference.tiling.tiles import lay_tiles

SHAPES = [(35, 51, 37), (16, 16, 16), (17, 16, 90), (3, 40, 1)]


@pytest.mark.parametrize(
    ("shape", "tile", "overlap"),
    [
        *itertools.product(SHAPES, [(16, 16, 16), (9, 4, 30)], [0, 0.5, 0.3]),
        ((50, 60), (16, 20), 0.75),
        ((5, 6), (1, 1), 0.99),
    ],
)  # fmt: skip
def test_tiles_have_the_positions_of_monai(shape: tuple, tile: tuple, overlap: float) -> None:
    grid = lay_tiles(shape, tile, overlap)
    padded = tuple(max(n, t) for n, t in zip(shape, tile, strict=True))
    interval = _get_scan_interval(padded, tile, len(shape), [overlap] * len(shape))
    expected = {tuple(s.start for s in slices) for slices in dense_patch_slices(padded, tile, interval)}
    assert grid.padded_shape == padded
    assert set(itertools.product(*grid.starts)) == expected
    assert grid.num_tiles == len(expected)


def test_the_longest_axis_is_visited_slowest_and_every_tile_once() -> None:
    grid = lay_tiles((20, 64, 33), (16, 16, 16), 0.5)
    assert grid.axis_order == (1, 2, 0)
    visited = list(grid.visit())
    assert visited == sorted(set(visited))
    assert len(visited) == grid.num_tiles


def test_a_small_image_is_centred_in_its_tile_as_in_monai() -> None:
    grid = lay_tiles((3, 8), (6, 8), 0.5, pad_value=-1)
    tile = grid.extract(torch.ones(1, 3, 8), (0, 0))
    assert tile[0, :, 0].tolist() == [-1, 1, 1, 1, -1, -1]


def test_a_size_of_zero_takes_the_image_size() -> None:
    assert lay_tiles((30, 40), (16, 0), 0.5).tile == (16, 40)


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(4, 4\).*\(8, 8, 8\)"):
        lay_tiles((8, 8, 8), (4, 4), 0.5)
    with pytest.raises(ShapeError, match=r"\(8, 0, 8\)"):
        lay_tiles((8, 0, 8), (4, 4, 4), 0.5)
    with pytest.raises(ShapeError, match="1\\.0"):
        lay_tiles((8, 8), (4, 4), 1.0)
