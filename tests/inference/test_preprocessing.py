"""Tests of preprocessing against MONAI's own transforms."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from inference.plans import small_plan
from monai.data import MetaTensor
from monai.transforms import Orientation, Spacing
from nibabel.orientations import axcodes2ornt, inv_ornt_aff

from medseg.errors import VolumeError
from medseg.inference import preprocessing
from medseg.inference.preprocessing import AXIS_LABELS, model_grid, model_image, model_input
from medseg.inference.scan import load_scan
from medseg.inference.scan_size import growth
from medseg.volumes import Grid

SCHEMES: list[dict[str, Any]] = [
    {"scheme": "none"},
    {"scheme": "z_score"},
    {"scheme": "percentile"},
    {"scheme": "ct", "lower": -100, "upper": 300, "mean": 20.0, "std": 130.0},
]

FLAT: dict[str, Any] = {"spatial_dims": 2, "orientation": "LA", "patch": [16, 16], "tile": [16, 16]}


def scan_of(codes: str, shape: tuple[int, ...], spacing: tuple[float, ...], plan: Any, dtype: type = np.int16) -> Any:
    """Return a CT-like, slightly oblique scan stored in the given orientation."""
    turn = np.eye(4)
    turn[:3, :3] = [[0.995, -0.0998, 0], [0.0998, 0.995, 0], [0, 0, 1]]
    turn[:3, 3] = [11.3, -40, 7]
    affine = turn @ inv_ornt_aff(axcodes2ornt(codes), shape) @ np.diag([*spacing, 1])
    array = np.random.default_rng(0).normal(0, 400, shape).astype(dtype)
    return load_scan((array, affine), plan)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SLA", "AIL", "IRP"])
@pytest.mark.parametrize("spacing", [None, [1.3, 0.8, 2.1], [0.9, 1.1, 2.5], [0.9, 1.1, 0.7]])
def test_the_input_equals_that_of_monais_transforms(codes: str, spacing: list[float] | None) -> None:
    plan = small_plan(spacing=spacing, normalization=[{"scheme": "none"}], orientation="RAS")
    scan = scan_of(codes, (13, 22, 17), (0.9, 1.1, 2.5), plan)
    expected = preprocessing(plan)(scan.to_tensor())
    found = model_input(scan, plan)
    assert found.values.shape == expected.shape
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-9)
    # MONAI converts positions to normalised coordinates. One unit in the last place of 1500 is 1e-4.
    np.testing.assert_allclose(found.values.numpy(), expected.numpy(), atol=2e-4)
    assert found.values.numpy().std() > 100


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme["scheme"])
def test_normalisation_in_place_equals_the_transform(scheme: dict[str, Any]) -> None:
    plan = small_plan(spacing=None, normalization=[scheme])
    scan = scan_of("LAS", (9, 12, 11), (1, 1, 1), plan)
    assert torch.equal(model_input(scan, plan).values, preprocessing(plan)(scan.to_tensor()).as_tensor())


def test_spacings_that_monai_regards_as_equal_are_not_resampled() -> None:
    plan = small_plan(spacing=[1.0, 1.0, 1.0], normalization=[{"scheme": "none"}])
    scan = load_scan((np.random.default_rng(1).normal(size=(12, 9, 10)), np.diag([1.0004, 0.9997, 1.0, 1.0])), plan)
    expected = preprocessing(plan)(scan.to_tensor())
    found = model_input(scan, plan)
    assert torch.equal(found.values, expected.as_tensor())
    np.testing.assert_allclose(found.affine, expected.affine)


def test_two_dimensional_images_and_one_voxel_axes() -> None:
    plan = small_plan(
        spatial_dims=2, orientation="RA", spacing=[0.7, 1.9], patch=[16, 16], tile=[16, 16],
        normalization=[{"scheme": "none"}],
    )  # fmt: skip
    scan = load_scan((np.random.default_rng(2).normal(size=(31, 20)), np.eye(3)), plan)
    expected = preprocessing(plan)(scan.to_tensor())
    np.testing.assert_allclose(model_input(scan, plan).values.numpy(), expected.numpy(), atol=1e-6)
    thin = small_plan(spacing=[1.4, 1.0, 1.0], normalization=[{"scheme": "none"}])
    scan = load_scan((np.random.default_rng(3).normal(size=(15, 8, 1)), np.eye(4)), thin)
    expected = preprocessing(thin)(scan.to_tensor())
    np.testing.assert_allclose(model_input(scan, thin).values.numpy(), expected.numpy(), atol=1e-6)


def test_sheared_scans_are_preprocessed_by_monai() -> None:
    affine = np.eye(4)
    affine[1, 2] = 0.3
    plan = small_plan(spacing=[1.2, 1.2, 1.2])
    scan = load_scan((np.random.default_rng(4).normal(size=(12, 13, 14)), affine), plan)
    assert model_image(scan, plan) is None
    assert torch.equal(model_input(scan, plan).values, preprocessing(plan)(scan.to_tensor()).as_tensor())


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("orientation", ["RAS", "PIR", "SLA"])
def test_the_model_grid_is_that_of_the_preprocessed_image(order: tuple[int, ...], orientation: str) -> None:
    affine = np.eye(4)
    affine[:3, :3] = (np.diag([0.7, -1.1, 5.0]))[:, order]
    shape = tuple(np.array([40, 30, 9])[list(order)])
    plan = small_plan(spacing=[2.0, 0.9, 1.3], orientation=orientation, normalization=[{"scheme": "none"}])
    scan = load_scan((np.zeros(shape, np.float32), affine), plan)
    image = preprocessing(plan)(scan.to_tensor())
    found = model_grid(scan.reference.grid, plan)
    assert found.shape == image.shape[1:]
    np.testing.assert_allclose(found.affine, image.affine, atol=1e-9)


def grid_by_monai(native: Grid, plan: Any) -> tuple[tuple[int, ...], torch.Tensor]:
    """Return shape and affine of the grid that MONAI's Orientation and Spacing announce as lazy transforms."""
    labels = AXIS_LABELS[: plan.spatial_dims]
    given = MetaTensor(torch.zeros(1).expand(1, *native.shape), affine=torch.from_numpy(native.affine.copy()))
    oriented = Orientation(axcodes=plan.orientation, labels=labels, lazy=True)(given)
    spaced = Spacing(pixdim=plan.spacing, mode="bilinear", padding_mode="border", lazy=True)(oriented)
    return tuple(int(n) for n in spaced.peek_pending_shape()), spaced.peek_pending_affine()


@pytest.mark.parametrize("seed", range(40))
def test_the_model_grid_of_any_scan_is_that_of_monai(seed: int) -> None:
    random = np.random.default_rng(seed)
    dims = 2 if seed % 4 == 0 else 3
    affine = np.eye(4)
    affine[:dims, :dims] = np.linalg.qr(random.normal(size=(dims, dims)))[0] * random.uniform(0.3, 4, dims)
    if seed % 5 == 0:  # sheared
        affine[:dims, :dims] += random.uniform(-0.2, 0.2, (dims, dims))
    affine[:dims, 3] = random.normal(0, 50, dims)
    native = Grid(tuple(random.integers(1, 40, dims)), affine)
    spacing = random.uniform(0.5, 3, dims)
    if seed % 3 == 0:  # one axis keeps its spacing
        turned = model_grid(native, small_plan(spacing=None, **({} if dims == 3 else FLAT)))
        spacing[0] = turned.spacing[0] + 0.0009
    plan = small_plan(spacing=spacing.tolist(), **({"orientation": "PIR"} if dims == 3 else FLAT))
    found, (shape, expected) = model_grid(native, plan), grid_by_monai(native, plan)
    assert found.shape == shape
    np.testing.assert_allclose(found.affine, expected, rtol=1e-12, atol=1e-12)


def test_values_beyond_float32_are_refused() -> None:
    plan = small_plan(spacing=None)
    with pytest.raises(VolumeError, match=r"image in memory.*float32"):
        model_input(load_scan((np.full((4, 4, 4), -1e39), np.eye(4)), plan), plan)


def test_a_channel_in_another_axis_order_is_reordered() -> None:
    channels = [{"name": name, "modality": "MR"} for name in ("t1", "t2")]
    plan = small_plan(spacing=None, normalization=[{"scheme": "none"}] * 2, channels=channels)
    arrays = np.random.default_rng(2).normal(size=(2, 6, 7, 8)).astype(np.float32)
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    first, second = (nib.Nifti1Image(array, affine) for array in arrays)
    turned = second.as_reoriented(np.array([[2, 1], [0, -1], [1, -1]]))
    assert turned.shape != second.shape
    found = load_scan([first, turned], plan)
    assert torch.equal(found.to_tensor().as_tensor(), torch.from_numpy(arrays))
    expected, reordered = (model_input(scan, plan).values for scan in (load_scan([first, second], plan), found))
    assert torch.equal(reordered, expected)


@pytest.mark.parametrize("codes", ["RAS", "PIR", "SLA"])
@pytest.mark.parametrize("spacing", [(1.0, 2.0, 3.0), (0.9, 40.0, 0.5), (0.01, 0.02, 0.03), (5.0, 1e4, 1e30)])
def test_the_growth_is_the_ratio_of_the_grids(codes: str, spacing: tuple[float, float, float]) -> None:
    plan = small_plan(spacing=[1.0, 1.5, 0.7])
    grid = scan_of(codes, (12, 1, 5), spacing, plan).reference.grid
    if max(spacing) < 1e20:
        model = model_grid(grid, plan)
        assert growth(grid, plan) * 60 == pytest.approx(np.prod(model.shape), abs=0.5 * sum(model.shape) + 40, rel=0.1)
    assert growth(grid, small_plan(spacing=None)) == 1


@pytest.mark.parametrize("scheme", ["z_score", "percentile"])
@pytest.mark.parametrize("spacing", [None, [1.3, 0.8, 2.1]])
@pytest.mark.parametrize(
    ("dtype", "factor", "offset"),
    [
        ("uint32", 1, 4 * 10**9),
        ("int64", 1, 2**50),
        ("float64", 1, -(10**12)),
        ("float32", 1e21, 0),
        ("float64", 1e30, 0),
    ],
)
def test_neither_offset_nor_unit_of_the_intensities_changes_the_input(
    scheme: str, spacing: list[float] | None, dtype: str, factor: float, offset: int
) -> None:
    plan = small_plan(spacing=spacing, normalization=[{"scheme": scheme}])
    array = np.random.default_rng(0).integers(0, 1000, (13, 12, 11))
    affine = np.diag([0.9, 1.1, 2.5, 1])
    changed = (array * factor).astype(dtype) if factor != 1 else (array + offset).astype(dtype)
    expected = model_input(load_scan((array.astype(np.int16), affine), plan), plan)
    found = model_input(load_scan((changed, affine), plan), plan)
    np.testing.assert_allclose(found.values.numpy(), expected.values.numpy(), atol=1e-5)
