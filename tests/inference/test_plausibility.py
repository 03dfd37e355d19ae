"""Checks against the fingerprint of the training data."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from inference.plans import small_plan
from torch import nn

from medseg.errors import BundleError, ScanError
from medseg.inference import Predictor, predict_files
from medseg.inference.plausibility import (
    Fingerprint,
    LabelStatistics,
    check_field_of_view,
    extent_mm,
    measure,
    read_fingerprint,
    statistics_of,
    suspicions,
)
from medseg.volumes import Grid

LABELS = {"a": (1,), "b": (2,)}


def known(**changes) -> LabelStatistics:
    volumes = {"smallest": 1.0, "0.5%": 1.1, "median": 1.5, "99.5%": 1.9, "largest": 2.0}
    return LabelStatistics(
        **{"volume_ml": volumes, "absent": 0, "pieces": 2, "stray": 0.01, "at_border": 0.0, **changes}
    )


def fingerprint(**changes) -> Fingerprint:
    sizes = {name: [40.0, 50.0, 40.0] for name in ("smallest", "0.5%", "median", "99.5%", "largest")}
    values = {"cases": 10, "extent_mm": sizes, "spacing_mm": sizes, "labels": {"a": known()}, "is_cropped": True}
    return Fingerprint(**{**values, **changes})


def cube(edge: int = 11, start: int = 10, shape=(40, 40, 40)) -> np.ndarray:
    array = np.zeros(shape, dtype=np.uint8)
    array[(slice(start, start + edge),) * 3] = 1
    return array


GRID = Grid((40, 40, 40), np.eye(4))


def reasons(array: np.ndarray, grid: Grid = GRID, **changes) -> list[str]:
    return suspicions(measure(array, LABELS, grid), fingerprint(**changes))


def test_measurements_of_a_drawn_label_map():
    array = cube(10)
    array[30:32, 30:32, 30:32] = 1  # a second piece of 8 voxels
    array[0, 0:4, 0] = 2
    grid = Grid(array.shape, np.diag([0.5, 1.0, 2.0, 1.0]))
    found = measure(array, LABELS, grid)
    assert found["a"].volume_ml == pytest.approx(1.008)
    assert (found["a"].pieces, found["a"].at_border) == (2, 0)
    assert found["a"].stray == pytest.approx(8 / 1008)
    assert (found["b"].volume_ml, found["b"].pieces, found["b"].at_border) == (pytest.approx(0.004), 1, 1)
    assert measure(np.zeros_like(array), LABELS, grid)["a"].pieces == 0


def test_a_diagonal_neighbour_belongs_to_the_same_piece():
    array = np.zeros((6, 6, 6), dtype=np.uint8)
    array[1, 1, 1] = array[2, 2, 2] = 1
    assert measure(array, LABELS, Grid(array.shape, np.eye(4)))["a"].pieces == 1


def test_the_border_of_a_thin_scan_counts_along_its_other_axes_only():
    array = np.zeros((20, 20, 1), dtype=np.uint8)
    array[5:10, 5:10] = 1
    assert measure(array, LABELS, Grid(array.shape, np.eye(4)))["a"].at_border == 0


def test_a_plausible_result_is_silent():
    assert reasons(cube(11)) == []


@pytest.mark.parametrize(("edge", "volume"), [(5, "0.12"), (20, "8.00")])
def test_an_implausible_volume_is_named_with_the_range(edge, volume):
    (reason,) = reasons(cube(edge))
    assert reason.startswith("a: ")
    assert all(number in reason for number in (volume, "1.00", "2.00"))


def test_an_absent_structure_is_suspicious_unless_it_was_absent_in_training():
    empty = np.zeros((40, 40, 40), dtype=np.uint8)
    assert "absent" in reasons(empty)[0]
    assert reasons(empty, labels={"a": known(absent=3)}) == []


def test_pieces_and_the_border():
    pieces = cube(10)
    pieces[25:33, 25:33, 25:33] = 1
    assert any("pieces" in reason for reason in reasons(pieces))
    assert any("border" in reason for reason in reasons(cube(11, start=0)))
    assert reasons(cube(11, start=0), labels={"a": known(at_border=0.4)}) == []


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
def test_a_whole_scan_is_refused_by_a_network_of_crops(axes):
    affine = np.eye(4)[:, [*axes, 3]]
    shape = tuple(np.array([188, 256, 190])[list(axes)])
    with pytest.raises(ScanError) as caught:
        check_field_of_view("head.nii.gz", Grid(shape, affine), fingerprint(for_whole_scans="brain_segmentation"))
    for fact in ("head.nii.gz", "188×256×190", "40×50×40", "brain_segmentation", "--force"):
        assert fact in str(caught.value)
    check_field_of_view("head.nii.gz", Grid(shape, affine), fingerprint(is_cropped=False))
    check_field_of_view("crop.nii.gz", Grid((60, 60, 60), np.eye(4)), fingerprint())


def test_extents_follow_the_patients_axes():
    affine = np.diag([2.0, 1.0, 0.5, 1.0])[:, [2, 0, 1, 3]]
    np.testing.assert_allclose(extent_mm(Grid((10, 20, 30), affine)), [40.0, 30.0, 5.0])


def test_statistics_leave_absent_cases_out_of_the_volumes():
    found = [measure(cube(edge), LABELS, GRID)["a"] for edge in (0, 10, 20)]
    statistics = statistics_of(found)
    assert (statistics.absent, statistics.pieces) == (1, 1)
    assert statistics.volume_ml["smallest"] == 1.0
    assert statistics.volume_ml["median"] == 4.5
    assert statistics.volume_ml["largest"] == 8.0


def test_2d_images_are_judged_by_the_share_of_the_image():
    grid = Grid((20, 20), np.eye(4))
    flat = np.zeros(grid.shape, dtype=np.uint8)
    flat[:, :15] = 1
    found = measure(flat, {"a": (1,)}, grid)
    statistics = statistics_of([found["a"]], has_volume=False)
    assert statistics.volume_ml == {}
    assert statistics.share["median"] == 0.75
    known_shares = fingerprint(labels={"a": statistics}, extent_mm={}, spacing_mm={})
    assert suspicions(found, known_shares) == []
    for columns, is_suspicious in ((14, False), (16, False), (8, True), (19, True), (0, True)):
        flat[:] = 0
        flat[:, :columns] = 1
        reasons_found = suspicions(measure(flat, {"a": (1,)}, grid), known_shares)
        assert bool(reasons_found) == is_suspicious, columns


def test_a_fingerprint_survives_its_file_and_a_damaged_one_is_named(tmp_path):
    file = tmp_path / "fingerprint.json"
    file.write_text(json.dumps(fingerprint().to_dict()))
    assert read_fingerprint(file).to_dict() == fingerprint().to_dict()
    for text in ("{", "[]", '{"labels": {}}', '{"labels": {"a": {"volume": 1}}, "cases": 1}'):
        file.write_text(text)
        with pytest.raises(BundleError, match=r"fingerprint\.json"):
            read_fingerprint(file)


class Threshold(nn.Module):
    """Label 1 where the image is positive."""

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(tiles), tiles], dim=1)


def model(**options) -> Predictor:
    plan = small_plan(labels={"background": 0, "a": 1}, crop_ratios=None, normalization=[{"scheme": "none"}])
    return Predictor(Threshold(), plan, "cpu", fingerprint=fingerprint(), **options)


def test_the_status_goes_into_result_and_record(tmp_path):
    import nibabel as nib

    scans = tmp_path / "scans"
    scans.mkdir()
    for name, edge in (("good", 11), ("tiny", 4)):
        nib.save(nib.Nifti1Image(cube(edge).astype(np.float32), np.eye(4)), scans / f"{name}.nii.gz")
    for _ in range(2):  # the second run skips both, and still says what is suspicious
        good, tiny = predict_files(model(), [scans], tmp_path / "out")
        assert (good.suspicions, good.message in ("", "finished by an earlier run")) == ([], True)
        assert len(tiny.suspicions) == 1
        assert "0.06" in tiny.message
    assert tiny.status == "skipped"
    record = json.loads((tmp_path / "out" / "tiny.json").read_text())
    assert (record["status"], record["suspicions"]) == ("suspicious", tiny.suspicions)
    segmentation = model().predict(scans / "tiny.nii.gz")
    assert segmentation.status == "suspicious"


def test_a_whole_scan_fails_before_the_network_runs_unless_forced(tmp_path):
    scan = (cube(11, shape=(100, 100, 100)).astype(np.float32), np.eye(4))
    refused = model()
    refused.backend = None  # would fail if it were called
    with pytest.raises(ScanError, match="100×100×100"):
        refused.predict(scan)
    forced = model(force=True).predict(scan)
    assert forced.status == "suspicious"
    assert forced.volumes_ml()["a"] == pytest.approx(1.331)
