"""Tests of skipping tiles of air, which must not change a label."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from inference.plans import small_plan
from scipy.ndimage import gaussian_filter
from torch import nn

from medseg.inference import Predictor
from medseg.inference.tiling.tiles import air_tiles, lay_tiles

AIR = -1000.0


class BodyOnly(nn.Module):
    """Predict classes from the surroundings of a voxel, but always background where the voxel itself is below −500."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(2)
            self.look = nn.Conv3d(1, 3, 5, padding=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.look((x + 500) / 300)
        return torch.cat([10.0 * (x < -500), logits], dim=1)


def body(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Return an ellipsoid of tissue in one corner of a volume of air, and a separate small piece."""
    rng = np.random.default_rng(seed)
    index = np.indices(shape) / np.asarray(shape).reshape(-1, *[1] * len(shape))
    inside = ((index - 0.3) ** 2).sum(0) < 0.04
    inside[tuple(n - 7 for n in shape)] = True
    tissue = gaussian_filter(rng.normal(0, 900, shape), 1.0)
    return np.where(inside, np.maximum(tissue, -300), AIR + rng.uniform(0, 50, shape)).astype(np.float32)


def test_air_tiles_have_no_voxel_above_the_threshold_within_the_rim() -> None:
    image = torch.full((37, 50, 29), AIR)
    for position in ((3, 4, 5), (20, 33, 28), (36, 0, 12)):
        image[position] = 40
    grid = lay_tiles(image.shape, (16, 12, 40), 0.5)
    for rim in (0, 1, 3):
        found = air_tiles(image, -500, grid, rim)
        expected = set()
        for index in product(*(range(len(grid.starts[axis])) for axis in grid.axis_order)):
            box: list[Any] = [slice(0)] * 3
            for axis, i in zip(grid.axis_order, index, strict=True):
                first = grid.starts[axis][i] - grid.pad_before[axis]
                box[axis] = slice(max(first - rim, 0), first + grid.tile[axis] + rim)
            if (image[tuple(box)] < -500).all():
                expected.add(index)
        assert found == expected
        assert 0 < len(found) < grid.num_tiles


@pytest.mark.parametrize("spacing", [None, [1.4, 0.8, 1.0]], ids=["native", "resampled"])
@pytest.mark.parametrize("normalization", [{"scheme": "none"}, {"scheme": "window", "lower": -2e3, "upper": 2e3,
                                           "out_min": -2e3, "out_max": 2e3}])  # fmt: skip
def test_skipping_air_does_not_change_a_label(spacing: list[float] | None, normalization: dict) -> None:
    changes: dict[str, Any] = {
        "labels": {"background": 0, "a": 3, "b": 5, "c": 9}, "spacing": spacing, "tile": [16, 16, 16],
        "normalization": [normalization], "orientation": "LPS",
    }  # fmt: skip
    image = (body((60, 49, 55)), np.diag([1.0, -1.2, 1.0, 1.0]))
    every = Predictor(BodyOnly(), small_plan(**changes), "cpu").predict(image)
    fewer = Predictor(BodyOnly(), small_plan(**changes, air_below=-500), "cpu", batch_size=3).predict(image)
    assert fewer.provenance["tiles_left_out"] > 50
    assert every.provenance["tiles_left_out"] == 0
    np.testing.assert_array_equal(fewer.array, every.array)
    assert len(np.unique(every.array)) >= 3


def test_a_scan_of_air_needs_no_network() -> None:
    class Unrunnable(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("the network was run")

    plan = small_plan(air_below=-500)
    seg = Predictor(Unrunnable(), plan, "cpu").predict((np.full((20, 33, 18), AIR), np.diag([1.3, 1, 1, 1])))
    assert not seg.array.any()


def test_no_tile_is_skipped_if_probabilities_are_requested() -> None:
    changes: dict[str, Any] = {"labels": {"background": 0, "a": 3, "b": 5, "c": 9}, "air_below": -500}
    image = (body((30, 25, 40)), np.eye(4))
    seg = Predictor(BodyOnly(), small_plan(**changes), "cpu", uncertainty=True).predict(image)
    assert seg.provenance["tiles_left_out"] == 0
