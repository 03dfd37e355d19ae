"""Boxes around regions: cut out, predicted, put back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from inference.regions.phantom_head import (
    CENTERS,
    Bright,
    grid,
    head,
    hippocampi,
    moved,
    positions,
    write_plan,
)
from monai.data import MetaTensor
from scipy import ndimage
from scipy.spatial.transform import Rotation

from medseg.errors import MedsegError, MemoryLimitError, PlanError, RegionError
from medseg.inference import RegionInferer, RegionPredictor, SlidingWindowInferer
from medseg.inference.regions import Box, Region
from medseg.inference.regions.region_inferer import ABSENT, merge_boxes, recentered, resample
from medseg.transforms.restore.native import RestoreToNative


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return write_plan(tmp_path_factory.mktemp("bundles") / "phantom_heads")


def dice(found: np.ndarray, reference: np.ndarray, value: int) -> float:
    a, b = found == value, reference == value
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def region(name: str = "left", size=(6.0, 8.0, 4.0), mirrored: bool = False, channels=(0, 1)) -> Region:
    return Region(name, (0.0, 0.0, 0.0), size, mirrored, channels)


def test_both_sides_are_found_in_a_turned_head(plan):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", (12, -8, 6), degrees=True).as_matrix()
    matrix[:3, 3] = [6, -8, 4]
    shape, affine = grid()
    points = moved(positions(shape, affine), matrix)
    result = RegionPredictor(Bright(), plan, "cpu").predict((head(points), affine))
    reference = hippocampi(points)
    assert result.array.shape == shape
    for value in (1, 2):
        assert dice(result.array, reference, value) > 0.9
    found = result.provenance["regions"]
    for name, center in CENTERS.items():
        truth = matrix[:3, :3] @ center + matrix[:3, 3]
        np.testing.assert_allclose(found["centers_mm"][name], truth, atol=2.5)


def test_every_orientation_of_the_axes_gives_the_same_labels(plan):
    shape, affine = grid()
    image = nib.Nifti1Image(head(positions(shape, affine)).astype(np.float32), affine)
    model = RegionPredictor(Bright(), plan, "cpu")
    expected = model.predict(image).array
    for codes in ("LPS", "ASL", "IRP"):
        change = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(codes))
        found = model.predict(image.as_reoriented(change))
        back = nib.Nifti1Image(found.array, found.affine).as_reoriented(
            nib.orientations.ornt_transform(nib.io_orientation(found.affine), nib.io_orientation(affine))
        )
        np.testing.assert_array_equal(np.asarray(back.dataobj), expected)


def test_the_inferer_gives_the_predictors_labels(plan):
    shape, affine = grid()
    array = head(positions(shape, affine)).astype(np.float32)
    inferer = RegionInferer(SlidingWindowInferer(plan.tile, 1, plan.overlap, plan.blending), plan)
    meta = {
        "original_affine": torch.from_numpy(affine), "spatial_shape": torch.tensor(shape), "filename_or_obj": "a.nii"
    }  # fmt: skip
    image = MetaTensor(torch.from_numpy(array)[None], affine=torch.from_numpy(affine), meta=meta)
    logits = inferer(image[None], Bright())
    assert logits.shape[1] == 3
    assert logits[0].numel() < image.numel(), "only the window around the regions is kept"
    labels = RestoreToNative(plan.label_values)(logits[0], image.meta)
    expected = RegionPredictor(Bright(), plan, "cpu").predict((array, affine)).array
    np.testing.assert_array_equal(labels[0].numpy(), expected)
    two = inferer(torch.stack([image, image]), Bright())
    for single in two:
        np.testing.assert_array_equal(single.as_tensor(), logits[0].as_tensor())


def test_probabilities_and_entropy_cover_the_whole_scan(plan):
    shape, affine = grid()
    array = head(positions(shape, affine)).astype(np.float32)
    options = {"save_probabilities": True, "uncertainty": True}
    result = RegionPredictor(Bright(), plan, "cpu", **options).predict((array, affine))
    total = sum(np.asarray(p, dtype=np.float32) for p in result.probabilities.values())
    np.testing.assert_allclose(total, 1, atol=2e-3)
    assert result.probabilities["background"][0, 0, 0] == 1
    assert result.entropy[0, 0, 0] == 0
    for name in ("left", "right"):
        low, high = result.intervals_ml[name]
        assert low - 1e-9 <= result.volumes_ml()[name] <= high + 1e-9


def test_given_centers_need_no_registration(plan):
    shape, affine = grid()
    array = head(positions(shape, affine), has_skull=False)
    array[positions(shape, affine)[..., 2] > 10] = 0  # nothing that could be registered
    with pytest.raises(RegionError):
        RegionPredictor(Bright(), plan, "cpu").predict((array, affine))
    result = RegionPredictor(Bright(), plan, "cpu", centers_mm=CENTERS).predict((array, affine))
    for value in (1, 2):
        assert dice(result.array, hippocampi(positions(shape, affine)), value) > 0.95
    assert result.provenance["regions"]["correlation"] is None


def test_an_unknown_region_is_named(plan):
    with pytest.raises(RegionError, match=r"middle.*left, right"):
        RegionPredictor(Bright(), plan, "cpu", centers_mm={"middle": (0, 0, 0)})


def test_a_memory_limit_that_cannot_be_kept_is_refused_before_the_work(plan):
    shape, affine = grid()
    model = RegionPredictor(Bright(), plan, "cpu", max_ram="100MB")
    model.inferer.predict = None  # would fail if it were called
    with pytest.raises(MemoryLimitError, match="100 MB"):
        model.predict((head(positions(shape, affine)), affine))


MEASURED = """
import json, sys
sys.path.insert(0, {tests!r})
import nibabel as nib
import numpy as np
from inference.regions.phantom_head import Bright
from medseg.inference import RegionPredictor
from medseg.inference.memory import keep_freed_memory
from medseg.inference.scan import load_scan
from medseg.plan import read_plan

small = nib.load({head!r})
array = np.asarray(small.dataobj, dtype=np.float32).repeat(2, 0).repeat(2, 1).repeat(2, 2)
affine = small.affine @ np.diag([0.5, 0.5, 0.5, 1])
model = RegionPredictor(Bright(), read_plan({plan!r}), "cpu", max_ram="100GB", uncertainty=True)
keep_freed_memory(False)
scan = load_scan((array, affine), model.plan)
estimate = model.memory(scan)
model.predict_scan(scan)
peak = 1024 * int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
print(json.dumps({{"estimate": estimate.total, "resident": estimate.resident, "peak": peak}}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak is read from /proc")
def test_the_memory_estimate_bounds_the_real_peak(plan, tmp_path):
    shape, affine = grid()
    nib.save(nib.Nifti1Image(head(positions(shape, affine)).astype(np.float32), affine), tmp_path / "head.nii.gz")
    tests = str(Path(__file__).resolve().parents[2])
    code = MEASURED.format(tests=tests, head=str(tmp_path / "head.nii.gz"), plan=plan.source)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["peak"] <= found["estimate"]
    assert found["peak"] - found["resident"] > 0.3 * (found["estimate"] - found["resident"])


def test_a_region_outside_the_scan_is_refused(plan):
    shape, affine = grid()
    array = head(positions(shape, affine))
    model = RegionPredictor(Bright(), plan, "cpu", centers_mm={"left": (-120, 0, 0), "right": (26, -21, -14)})
    with pytest.raises(RegionError, match=r"left.*inside the scan"):
        model.predict((array, affine))


def test_an_altered_or_missing_template_is_refused(tmp_path):
    plan = write_plan(tmp_path / "heads")
    file = tmp_path / "heads" / "atlas" / "head.nii.gz"
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(RegionError, match="sha256"):
        RegionPredictor(Bright(), plan, "cpu")
    file.unlink()
    with pytest.raises(MedsegError, match=r"head\.nii\.gz"):
        RegionPredictor(Bright(), plan, "cpu")


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        ({"channels": ["hippocampus"]}, "channels"),
        ({"boxes": []}, "at least one box"),
        ({"boxes": [{"name": "left"}]}, "center_mm"),
        ({"more": 1}, "more"),
    ],
)
def test_a_plan_with_wrong_regions_is_refused(tmp_path, change, fact):
    plan = write_plan(tmp_path / "heads")
    with pytest.raises(PlanError, match=fact):
        write_plan(tmp_path / "other", regions={**json.loads(json.dumps(plan.regions)), **change})


def test_resampling_equals_scipys():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, 9, 11, 7)).astype(np.float32)
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", (20, 30, -10), degrees=True).as_matrix() * [0.8, 1.1, 0.9]
    matrix[:3, 3] = [1.2, -0.7, 0.4]
    found = resample(torch.from_numpy(image), matrix, (8, 10, 9)).numpy()
    index = np.stack(np.meshgrid(*map(np.arange, (8, 10, 9)), indexing="ij"))
    place = np.einsum("ij,jabc->iabc", matrix[:3, :3], index) + matrix[:3, 3][:, None, None, None]
    for channel in range(2):
        expected = ndimage.map_coordinates(image[channel].astype(np.float64), place, order=1, mode="nearest")
        np.testing.assert_allclose(found[channel], expected, atol=1e-5)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_box_on_whole_voxels_is_cut_out_and_put_back_exactly(mirrored):
    rng = np.random.default_rng(1)
    image = torch.from_numpy(rng.normal(size=(1, 12, 14, 10)).astype(np.float32))
    affine = np.eye(4)
    affine[:3, 3] = [-6, -7, -5]
    box = Box.around(np.array([0.5, -0.5, -1.5]), region(mirrored=mirrored), np.eye(3), (1.0, 1.0, 1.0))
    part = resample(image, np.linalg.inv(affine) @ box.affine, box.shape)
    expected = image[:, 4:10, 3:11, 2:6]
    expected = expected.flip(1) if mirrored else expected
    np.testing.assert_allclose(part, expected, atol=1e-5)
    logits = torch.cat([torch.zeros_like(part), part])
    merged, window = merge_boxes([(region(mirrored=mirrored), box, logits)], 2, affine, (12, 14, 10))
    start = np.round(np.linalg.inv(affine) @ window)[:3, 3].astype(int)
    inner = tuple(slice(a - s, b - s) for a, b, s in zip((4, 3, 2), (10, 11, 6), start, strict=True))
    np.testing.assert_allclose(merged[(1, *inner)], image[0, 4:10, 3:11, 2:6], atol=1e-5)
    outside = torch.ones(merged.shape[1:], dtype=torch.bool)
    outside[inner] = False
    assert (merged[1][outside] == ABSENT).all()
    assert (merged[0] == 0).all()


def test_the_larger_logit_wins_where_boxes_overlap():
    size = (4.0, 4.0, 4.0)
    first, second = region("a", size, channels=(0, 1)), region("b", size, channels=(0, 2))
    affine = np.eye(4)
    boxes = [Box.around(np.array([x, 4.5, 4.5]), first, np.eye(3), (1.0,) * 3) for x in (3.5, 5.5)]
    weak = torch.stack([torch.full((4, 4, 4), 7.0), torch.full((4, 4, 4), 8.0)])  # 1 above its background
    strong = torch.stack([torch.full((4, 4, 4), -9.0), torch.full((4, 4, 4), -6.0)])  # 3 above its background
    for order in (1, -1):
        parts = [(first, boxes[0], weak), (second, boxes[1], strong)][::order]
        merged, window = merge_boxes(parts, 3, affine, (10, 10, 10))
        labels = merged.argmax(0)
        start = window[:3, 3].astype(int)
        row = labels[:, 4 - start[1], 4 - start[2]].tolist()
        assert row[2 - start[0] : 8 - start[0]] == [1, 1, 2, 2, 2, 2]


def test_a_box_is_centred_on_what_was_found_unless_that_is_far_away():
    box = Box.around(np.zeros(3), region(size=(40.0, 40.0, 40.0)), np.eye(3), (1.0,) * 3)
    logits = torch.zeros(2, 40, 40, 40)
    assert recentered(logits, box) is None
    logits[1, 22:26, 18:24, 20:22] = 1
    found = recentered(logits, box)
    np.testing.assert_allclose(found.corners_mm().mean(0), [4, 1, 1], atol=1e-9)
    logits[1, 39, 39, 39] = 1
    logits[1, 22:26, 18:24, 20:22] = 0
    assert recentered(logits, box) is None
