"""Tests of 2D networks on volumes, with a loop over the slices in nibabel and MONAI as oracle."""

from __future__ import annotations

import json
from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from inference.plans import small_plan
from inference.thin_network import ThresholdNetwork, thin_network
from monai.inferers import sliding_window_inference
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from volumes.dicom_series import write_series

from medseg.errors import MemoryLimitError, PlanError, VolumeError
from medseg.inference import Predictor, predict_files
from medseg.inference.slice_predictor import SlicePredictor
from medseg.plan import Plan

NETWORK = thin_network(5, 3, spatial_dims=2)
TILE = (4, 6)
ORIENTATIONS = [
    "".join(pair[flip] for pair, flip in zip(pairs, flips, strict=True))
    for pairs in permutations(("RL", "AP", "SI"))
    for flips in product((0, 1), repeat=3)
]


def slice_plan(axis: str = "S", orientation: str = "RA", **changes: Any) -> Plan:
    values = {"spatial_dims": 2, "patch": TILE, "tile": TILE, "spacing": None, "slice_axis": axis}
    return small_plan(**{**values, "orientation": orientation, **changes})


def scan_in(orientation: str, shape: tuple[int, int, int] = (7, 8, 4)) -> nib.Nifti1Image:
    """Return an oblique scan of fixed content, stored in the given orientation."""
    turn = np.array([[0.98, -0.17, 0.05], [0.17, 0.98, -0.04], [-0.04, 0.05, 0.99]])
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.qr(turn)[0] * np.sign(np.diag(np.linalg.qr(turn)[0])) @ np.diag([1.5, 0.8, 3.0])
    affine[:3, 3] = (-20, 30, 5)
    array = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    image = nib.Nifti1Image(array, affine)
    return image.as_reoriented(ornt_transform(io_orientation(affine), axcodes2ornt(tuple(orientation))))


def predicted_slice_by_slice(image: nib.Nifti1Image, plan: Plan) -> np.ndarray:
    """Reorient the whole volume, predict it slice by slice, and reorient the labels back."""
    axis = "RAS".index(plan.slice_axis or "")
    wanted = axcodes2ornt((*plan.orientation, plan.slice_axis))
    stored = io_orientation(image.affine)
    turned = apply_orientation(image.get_fdata(dtype=np.float32), ornt_transform(stored, wanted))
    labels = np.empty(turned.shape, np.uint8)
    for k in range(turned.shape[2]):
        flat = torch.from_numpy((turned[..., k] - turned[..., k].mean()) / turned[..., k].std())
        with torch.no_grad():
            logits = sliding_window_inference(flat[None, None], TILE, 1, NETWORK, overlap=0.5, mode="gaussian")
        labels[..., k] = logits[0].argmax(0).numpy()
    assert image.shape[int(np.flatnonzero(stored[:, 0] == axis)[0])] == turned.shape[2]
    return apply_orientation(labels, ornt_transform(wanted, stored))


@pytest.mark.parametrize(
    ("axis", "orientation", "orientations"),
    [
        ("S", "PL", ORIENTATIONS),
        ("S", "RA", ORIENTATIONS[::9]),
        ("A", "SR", ORIENTATIONS[1::9]),
        ("R", "PS", ORIENTATIONS[2::9]),
    ],
)
def test_every_orientation_equals_the_loop_over_slices(axis: str, orientation: str, orientations: list[str]) -> None:
    assert len(set(ORIENTATIONS)) == 48
    plan = slice_plan(axis, orientation)
    predictor = SlicePredictor(NETWORK, plan, "cpu")
    for stored in orientations:
        image = scan_in(stored)
        found = predictor.predict(image)
        np.testing.assert_array_equal(found.affine, image.affine)
        np.testing.assert_array_equal(found.array, predicted_slice_by_slice(image, plan), err_msg=stored)
    assert set(np.unique(found.array)) == {0, 1, 2}


def test_resampled_slices_equal_predicting_each_alone() -> None:
    """The in-plane spacing is the file's also for oblique scans, and slices are not mixed."""
    plan = slice_plan(spacing=[1.1, 1.1])
    image = scan_in("RAS")
    alone = Predictor(NETWORK, slice_plan(spacing=[1.1, 1.1], slice_axis=None), "cpu")
    flat = np.diag([1.5, 0.8, 1.0, 1.0])
    expected = [alone.predict((image.get_fdata(dtype=np.float32)[..., k], flat)).array for k in range(4)]
    found = SlicePredictor(NETWORK, plan, "cpu").predict(image)
    np.testing.assert_array_equal(found.array, np.stack(expected, axis=-1))


def test_maps_volumes_and_record_describe_the_whole_volume(tmp_path: Path) -> None:
    affine = np.array([[0, -1.5, 0.4, 4], [2, 0, 0, -3], [0, 0, -1, 7], [0, 0, 0, 1.0]])  # sheared, as gantry tilt
    array = np.random.default_rng(2).normal(size=(7, 9, 5)).astype(np.float32)
    nib.save(nib.Nifti1Image(array, affine), tmp_path / "scan.nii.gz")
    plan = slice_plan(labels={"background": 0, "bright": 4}, normalization=[{"scheme": "none"}])
    progress: list[tuple[int, int]] = []
    predictor = SlicePredictor(
        ThresholdNetwork(), plan, "cpu", uncertainty=True, save_probabilities=True, weights_sha256=["a"],
        on_tiles=lambda done, total: progress.append((done, total)),
    )  # fmt: skip
    (result,) = predict_files(predictor, [tmp_path / "scan.nii.gz"], tmp_path / "out")
    saved = nib.load(result.output)
    np.testing.assert_array_equal(saved.get_fdata(), 4 * (array > 0))
    np.testing.assert_array_equal(saved.affine, affine.astype(np.float32))
    voxel_ml = abs(np.linalg.det(affine[:3, :3])) / 1000
    assert result.volumes_ml == pytest.approx({"bright": np.count_nonzero(array > 0) * voxel_ml})
    bright = 1 / (1 + np.exp(-2 * array))
    found = nib.load(tmp_path / "out" / "scan_probability_bright.nii.gz").get_fdata()
    np.testing.assert_allclose(found, bright, atol=1e-3)
    entropy = -(bright * np.log2(bright) + (1 - bright) * np.log2(1 - bright))
    np.testing.assert_allclose(nib.load(tmp_path / "out" / "scan_entropy.nii.gz").get_fdata(), 255 * entropy, atol=0.6)
    record = json.loads((tmp_path / "out" / "scan.json").read_text())
    assert (record["slice_axis"], record["plan_sha256"]) == ("S", plan.digest)
    sure, maybe = (np.count_nonzero(bright >= p) * voxel_ml for p in (0.75, 0.25))
    assert record["volume_intervals_ml"]["bright"] == pytest.approx([sure, maybe])
    assert progress == [(n + 1, progress[-1][1]) for n in range(progress[-1][1])]
    assert len(progress) % 5 == 0
    assert predict_files(predictor, [tmp_path / "scan.nii.gz"], tmp_path / "out")[0].status == "skipped"


def test_a_memory_limit_holds_for_all_slices_together() -> None:
    image = scan_in("RAS")
    free = SlicePredictor(NETWORK, slice_plan(), "cpu").predict(image)
    limited = SlicePredictor(NETWORK, slice_plan(), "cpu", max_ram="16GB", batch_size=4).predict(image)
    np.testing.assert_array_equal(limited.array, free.array)
    with pytest.raises(MemoryLimitError, match="1 MB"):
        SlicePredictor(NETWORK, slice_plan(), "cpu", max_ram="1MB").predict(image)


def test_a_dicom_series_is_predicted_by_its_own_slices(tmp_path: Path) -> None:
    series = write_series(tmp_path / "series")
    plan = slice_plan(labels={"background": 0, "bright": 1}, normalization=[{"scheme": "none"}])
    found = SlicePredictor(ThresholdNetwork(level=300), plan, "cpu").predict(series)
    np.testing.assert_array_equal(found.array, found.scan.array > 300)
    assert 0 < found.array.mean() < 1


def test_images_of_another_dimension_are_refused(tmp_path: Path) -> None:
    predictor = SlicePredictor(NETWORK, slice_plan(), "cpu")
    with pytest.raises(VolumeError, match=r"shape \(5, 6\)"):
        predictor.predict((np.zeros((5, 6), np.float32), np.eye(4)))
    with pytest.raises(PlanError, match="slice_axis"):
        SlicePredictor(NETWORK, slice_plan(slice_axis=None), "cpu")
