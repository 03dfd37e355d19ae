"""Resampling has the last bits of MONAI's, and sequences of normalisations are those of MONAI."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    Invertd,
    NormalizeIntensity,
    Orientation,
    Orientationd,
    ScaleIntensity,
    Spacing,
    Spacingd,
)

from medseg.errors import PlanError
from medseg.transforms import NormalizeIntensityByModality, RestoreToNative
from medseg.transforms.restore.monai_grid import axis_coordinates, nearest_map, sample_linearly

AFFINE = np.array([[0, -0.75, 0, 31.2], [0.75, 0, 0, -7.1], [0, 0, 1.0, 3.3], [0, 0, 0, 1.0]])
SHAPE = (19, 26, 15)


def scan(values: torch.Tensor | None = None) -> MetaTensor:
    image = torch.randint(-3, 4, (1, *SHAPE), generator=torch.Generator().manual_seed(0)).float()
    affine = torch.from_numpy(AFFINE)
    meta = {"original_affine": affine, "spatial_shape": torch.tensor(SHAPE)}
    return MetaTensor(image if values is None else values, affine=affine, meta=meta)


def steps(spacing: float) -> list:
    return [Orientationd("image", "RAS", labels=None), Spacingd("image", [spacing] * 3, mode="bilinear")]


@pytest.mark.parametrize("spacing", [1.5, 0.6])
def test_interpolated_voxels_have_monais_bits(spacing):
    expected = Spacing([spacing] * 3, mode="bilinear")(oriented := Orientation("RAS", labels=None)(scan()))
    coordinates = axis_coordinates(oriented.affine, oriented.shape[1:], expected.affine, expected.shape[1:])
    found = torch.empty(expected.shape[1:])
    sample_linearly(oriented.as_tensor()[0], coordinates, found)
    assert torch.equal(found, expected.as_tensor()[0])


@pytest.mark.parametrize("spacing", [1.5, 2.25, 0.6])
def test_nearest_voxels_are_those_of_monais_inverse(spacing):
    transform = Compose(steps(spacing))
    data = transform({"image": scan()})
    shape = data["image"].shape[1:]
    numbers = torch.arange(float(np.prod(shape))).view(1, *shape)
    given = {**data, "pred": MetaTensor(numbers, affine=data["image"].affine)}
    inverted = Invertd("pred", transform, orig_keys="image", nearest_interp=True)(given)["pred"]
    grid_map = nearest_map(data["image"].affine, shape, AFFINE, SHAPE)
    assert grid_map is not None
    picked = numbers[0].numpy()
    order = [axis.axis for axis in grid_map.axes]
    index = np.ix_(*(axis.positions(0, axis.native_size).round().astype(int) for axis in grid_map.axes))
    np.testing.assert_array_equal(picked.transpose(order)[index], inverted[0].numpy())


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_restored_probabilities_are_those_of_monais_inverse(activation):
    transform = Compose(steps(1.1))
    data = transform({"image": scan()})
    channels = 3 if activation == "softmax" else 1
    shape = (channels, *data["image"].shape[1:])
    logits = 6 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    values = logits.softmax(0) if activation == "softmax" else logits.sigmoid()
    given = {**data, "pred": MetaTensor(values, affine=data["image"].affine)}
    inverted = Invertd("pred", transform, orig_keys="image", nearest_interp=False)(given)["pred"].as_tensor()
    expected = inverted.argmax(0) if activation == "softmax" else (inverted[0] >= 0.5).int()
    restore = RestoreToNative(activation=activation, restoring="probabilities")
    found = restore(MetaTensor(logits, affine=data["image"].affine), scan().meta)
    assert (found[0].numpy() != expected.numpy()).sum() == 0
    plain = RestoreToNative(activation=activation)(MetaTensor(logits, affine=data["image"].affine), scan().meta)
    assert (plain[0].numpy() != expected.numpy()).any()


def test_a_sequence_is_monais_compose():
    entry = {
        "scheme": "sequence",
        "steps": [
            {"scheme": "z_score", "foreground": "nonzero", "outside": "unchanged"},
            {"scheme": "percentile", "lower": 0, "upper": 100, "out_min": -1, "out_max": 1, "clip": False},
        ],
    }
    image = scan()
    expected = Compose([NormalizeIntensity(nonzero=True), ScaleIntensity(-1, 1)])(image.clone())
    normalize = NormalizeIntensityByModality([entry])
    found = normalize(image)
    torch.testing.assert_close(found.as_tensor(), expected.as_tensor(), rtol=0, atol=1e-6)
    assert (image == 0).any()
    inside = image.as_tensor() != 0
    torch.testing.assert_close(normalize.inverse(found).as_tensor()[inside], image.as_tensor()[inside])


@pytest.mark.parametrize(
    "entry",
    [
        {"scheme": "sequence", "steps": []},
        {"scheme": "sequence", "steps": [{"scheme": "sequence", "steps": [{"scheme": "none"}]}]},
        {"scheme": "z_score", "outside": "unchanged"},
        {"scheme": "z_score", "foreground": "nonzero", "outside": "elsewhere"},
    ],
)
def test_impossible_schemes_are_refused(entry):
    with pytest.raises(PlanError):
        NormalizeIntensityByModality([entry])
