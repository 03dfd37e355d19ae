"""Tests of unusual shapes and options, with MONAI's sliding window and SciPy's interpolation as oracle."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from inference.plans import small_plan
from inference.thin_network import thin_network
from monai.inferers import sliding_window_inference
from scipy.ndimage import map_coordinates
from torch import nn

from medseg.inference import Predictor
from medseg.inference.preprocessing import preprocessing
from medseg.inference.scan import load_scan
from medseg.inference.slice_predictor import SlicePredictor
from medseg.inference.tiling.tiles import lay_tiles
from medseg.plan import Plan
from medseg.transforms.restore.grid_map import composed_affine

Networks = list[nn.Module]


def native_logits(networks: Networks, plan: Plan, image: tuple, flips: tuple[int, ...] = ()) -> np.ndarray:
    """Return the mean logits (C, *native) of the networks, computed over the whole volume at once."""
    scan = load_scan(image, plan)
    prepared = preprocessing(plan)(scan.to_tensor())
    turns = [[axis + 2 for axis in part] for n in range(len(flips) + 1) for part in combinations(flips, n)]

    def mean(tiles: torch.Tensor) -> torch.Tensor:
        return torch.stack([net(tiles.flip(t)).flip(t) for net in networks for t in turns]).mean(0)

    with torch.no_grad():
        logits = sliding_window_inference(
            prepared.as_tensor()[None], plan.tile, 1, mean, overlap=plan.overlap, mode=plan.blending
        )
    assert isinstance(logits, torch.Tensor)
    native = scan.reference.grid
    dims = len(native.shape)
    matrix = composed_affine(prepared.affine, native.affine, dims)
    index = np.indices(native.shape).reshape(dims, -1)
    where = matrix[:dims, :dims] @ index + matrix[:dims, dims:]
    return np.stack([map_coordinates(c, where, order=1, mode="nearest") for c in logits[0].double().numpy()]).reshape(
        -1, *native.shape
    )


def decided(logits: np.ndarray, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels, and where they do not depend on rounding."""
    if plan.activation == "softmax":
        top = np.sort(logits, axis=0)[-2:]
        return np.array(plan.label_values)[logits.argmax(0)], top[1] - top[0] > 1e-4
    labels = np.zeros(logits.shape[1:], int)
    for value, region in zip(plan.label_values[1:], logits, strict=True):
        labels[region > 0] = value
    return labels, np.abs(logits).min(0) > 1e-4


def check(networks: Networks, plan: Plan, image: tuple, flips: tuple[int, ...] = (), **options: Any) -> Predictor:
    predictor = Predictor(networks, plan, "cpu", backend="torch", tta="flip" if flips else "none", **options)
    labels, is_sure = decided(native_logits(networks, plan, image, flips), plan)
    found = predictor.predict(image).array
    assert is_sure.mean() > 0.995
    np.testing.assert_array_equal(found[is_sure], labels[is_sure])
    assert len(np.unique(labels)) > 1
    return predictor


def scan(shape: tuple[int, ...], spacing: tuple[float, ...] = (1.3, 0.8, 2.0), seed: int = 0) -> tuple:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32), np.diag([*spacing, 1.0])


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("orientation", ["RAS", "SLP"])
@pytest.mark.parametrize("spacing", [None, [1.0, 1.0, 1.0]], ids=["native", "resampled"])
def test_volumes_one_voxel_thick(axis: int, orientation: str, spacing: list[float] | None) -> None:
    shape = tuple(1 if n == axis else size for n, size in enumerate((19, 23, 13)))
    check([thin_network(3, 3)], small_plan(spacing=spacing, orientation=orientation, tile=[8, 8, 8]), scan(shape))
    check([thin_network(2, 3)], small_plan(spacing=spacing, orientation=orientation, tile=[8, 8, 8]), scan(shape))


def test_a_single_voxel() -> None:
    plan = small_plan(normalization=[{"scheme": "none"}], tile=[4, 4, 4], patch=[4, 4, 4])
    logits = native_logits([thin_network(4, 3)], plan, scan((1, 1, 1)))
    found = Predictor(thin_network(4, 3), plan, "cpu").predict(scan((1, 1, 1)))
    np.testing.assert_array_equal(found.array, logits.argmax(0))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_tiles_larger_than_the_volume_along_one_axis(axis: int) -> None:
    tile = [24 if n == axis else 8 for n in range(3)]
    for features in (2, 4):
        check([thin_network(features, 3)], small_plan(tile=tile, spacing=[1.5, 0.9, 1.7]), scan((17, 19, 11)))


def test_batches_larger_than_the_number_of_tiles() -> None:
    plan = small_plan(spacing=None)
    image = scan((20, 17, 18))
    assert lay_tiles(image[0].shape, plan.tile, plan.overlap).num_tiles < 50
    check([thin_network(2, 3)], plan, image, batch_size=50)
    check([thin_network(4, 3)], plan, image, batch_size=50, uncertainty=True)


def test_one_region_with_sigmoid() -> None:
    plan = small_plan(labels={"background": 0, "lesion": 4}, activation="sigmoid", spacing=[1.1, 1.1, 1.6])
    for features in (1, 3):
        predictor = check(
            [thin_network(features, 1)], plan, scan((21, 19, 12)), uncertainty=True, save_probabilities=True
        )
        logits = native_logits([thin_network(features, 1)], plan, scan((21, 19, 12)))[0]
        seg = predictor.predict(scan((21, 19, 12)))
        assert seg.probabilities is not None
        assert seg.intervals_ml is not None
        np.testing.assert_allclose(seg.probabilities["lesion"], 1 / (1 + np.exp(-logits)), atol=1e-3)
        assert set(seg.intervals_ml) == {"lesion"}


class WithBias(nn.Module):
    """A network without a pointwise head, so that its features cannot be blended."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(11)
            self.all = nn.Sequential(nn.Conv3d(1, 5, 3, padding=1), nn.Tanh(), nn.Conv3d(5, 3, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3 * self.all(x)


def test_an_ensemble_with_different_heads_flips_and_probability_maps() -> None:
    plan = small_plan(spacing=[1.1, 1.2, 1.6], orientation="LPS", mirror_axes=[0, 2])
    networks: Networks = [thin_network(2, 3), thin_network(6, 3), WithBias().eval()]
    image = scan((23, 20, 14))
    predictor = check(networks, plan, image, (0, 2), batch_size=3, uncertainty=True, save_probabilities=True)
    logits = native_logits(networks, plan, image, (0, 2))
    p = np.exp(logits - logits.max(0))
    p /= p.sum(0)
    seg = predictor.predict(image)
    assert seg.probabilities is not None
    for found, expected in zip(seg.probabilities.values(), p, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_flips_of_blended_features() -> None:
    """A pointwise head commutes with flips."""
    plan = small_plan(spacing=[1.1, 1.2, 1.6], mirror_axes=[1])
    predictor = check([thin_network(2, 3)], plan, scan((15, 20, 14)), (1,), uncertainty=True)
    assert predictor.backend.head_weight is not None


def test_a_volume_of_one_slice_is_predicted_as_that_slice() -> None:
    values: dict[str, Any] = {"spatial_dims": 2, "patch": [8, 8], "tile": [8, 8], "spacing": None}
    network = thin_network(4, 3, spatial_dims=2)
    image = np.random.default_rng(3).normal(size=(17, 13)).astype(np.float32)
    flat = Predictor(network, small_plan(**values, orientation="RA"), "cpu").predict((image, np.eye(3))).array
    for axis, letter, orientation in ((0, "R", "AS"), (1, "A", "RS"), (2, "S", "RA")):
        plan = small_plan(**values, orientation=orientation, slice_axis=letter)
        predictor = SlicePredictor(network, plan, "cpu", uncertainty=True, save_probabilities=True)
        found = predictor.predict((np.expand_dims(image, axis), np.eye(4)))
        np.testing.assert_array_equal(found.array, np.expand_dims(flat, axis))
        assert found.entropy is not None
        assert found.entropy.shape == found.array.shape
