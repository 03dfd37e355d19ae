"""Tests of segmentations: their text, and their files, which are written completely or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from inference.counting import TWO, calls, make_predictor
from inference.plans import small_plan
from inference.thin_network import ThresholdNetwork
from volumes.dicom_series import write_series

from medseg.errors import VolumeError
from medseg.inference import Predictor, predict_files
from medseg.inference.segmentation import Segmentation
from medseg.volumes import Grid, Volume, read_volume, replacing


def test_the_text_of_a_segmentation_states_size_and_volumes() -> None:
    array = np.zeros((10, 20, 30), np.uint8)
    array[:5, :10] = 1  # 5 · 10 · 30 voxels of 2 mm³
    scan = Volume(array.astype(np.float32), Grid(array.shape, np.diag([1.0, 1.0, 2.0, 1.0])))
    text = repr(Segmentation(array, {"background": 0, "liver": 1, "spleen": 2}, scan))
    assert "10×20×30 voxels: liver 3.00 ml, spleen 0.00 ml" in text
    assert len(text) < 200


def test_the_text_of_a_2d_segmentation_states_no_volume() -> None:
    array = np.zeros((10, 20), np.uint8)
    array[:5, :10] = 1
    scan = Volume(array, Grid(array.shape, np.eye(4)), format="png")
    assert "10×20 pixels: cell 25.0%" in repr(Segmentation(array, {"background": 0, "cell": 1}, scan))


def test_all_files_of_a_case_are_written_or_none(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict_files(make_predictor(), [scans / "case0.nii.gz"], out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    (out / "case0_entropy.nii.gz").mkdir()
    results = predict_files(make_predictor(uncertainty=True), [scans], out)
    assert [r.status for r in results] == ["failed", "done", "done"]
    rule = "a folder is in the way of the output file; remove it or choose another name"
    assert results[0].message == f"{out / 'case0_entropy.nii.gz'}: {rule}"
    assert {p.name: p.read_bytes() for p in out.glob("case0*") if p.is_file()} == before
    assert not list(out.glob(".*"))


def test_an_mgz_scan_gets_an_mgz_segmentation_with_its_exact_affine(scans: Path, tmp_path: Path) -> None:
    scan = read_volume(scans / "case0.nii.gz")
    turn = np.array([[0.0, -1.1, 0.3, 4], [0, 0.2, 0.9, 5], [-1.3, 0, 0, 6], [0, 0, 0, 1]])
    nib.save(nib.MGHImage(scan.array.astype(np.float32), turn), tmp_path / "scan.mgz")
    predictor = make_predictor()
    for format, suffix in (("same", ".mgz"), ("mgz", ".mgz"), ("nifti", ".nii.gz")):
        (result,) = predict_files(predictor, [tmp_path / "scan.mgz"], tmp_path / format, format=format)
        assert result.status == "done", result.message
        saved = nib.load(tmp_path / format / f"scan{suffix}")
        expected = predictor.predict(tmp_path / "scan.mgz")
        np.testing.assert_array_equal(np.asarray(saved.dataobj), expected.array)
        np.testing.assert_allclose(
            saved.affine, nib.load(tmp_path / "scan.mgz").affine, atol=0 if "mgz" in suffix else 1e-6
        )


def test_maps_of_one_case_never_replace_another_case(scans: Path, tmp_path: Path) -> None:
    (scans / "case0.nii.gz").rename(scans / "case1_entropy.nii.gz")
    with pytest.raises(VolumeError, match=r"case1_entropy\.nii\.gz"):
        predict_files(make_predictor(uncertainty=True), [scans], tmp_path / "out")
    assert {r.status for r in predict_files(make_predictor(), [scans], tmp_path / "out")} == {"done"}


def test_a_folder_in_the_way_of_one_output_is_reported_for_that_scan(scans: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "case1.nii.gz").mkdir(parents=True)
    results = predict_files(make_predictor(), [scans], tmp_path / "out")
    assert [r.status for r in results] == ["done", "failed", "done"]
    assert "case1.nii.gz: a folder is in the way" in results[1].message


def test_a_later_run_removes_old_leftovers_of_a_killed_run(scans: Path, tmp_path: Path) -> None:
    """The run was killed while it wrote the files of a case, and while it wrote a single file."""
    out = tmp_path / "out"
    program = """if True:
        import os, sys
        from medseg.volumes import replacing, staged
        with staged(sys.argv[1] + "/case0.nii.gz") as path, replacing(sys.argv[1] + "/a.csv") as temporary:
            path.write_bytes(b"half")
            temporary.write_bytes(b"half")
            os.kill(os.getpid(), 9)
    """
    subprocess.run([sys.executable, "-c", program, str(out)], check=False)
    assert len(list(out.iterdir())) == 2
    (out / ".mine.partial").write_text("")  # another program's file
    yesterday = time.time() - 25 * 3600
    for path in out.iterdir():
        os.utime(path, (yesterday, yesterday))
    with replacing(out / "b.csv") as temporary:  # young: its process is still writing
        temporary.write_text("b")
        predict_files(make_predictor(), [scans], out)
        assert temporary.is_file()
    found = {path.name for path in out.iterdir()}
    assert found == {f"case{i}{suffix}" for i in range(3) for suffix in (".nii.gz", ".json")} | {
        ".mine.partial",
        "b.csv",
    }


@pytest.mark.parametrize("format", ["nifti", "nrrd", "mha"])
def test_a_full_disk_is_one_line_and_leaves_no_file(scans: Path, tmp_path: Path, format: Any) -> None:
    resource = pytest.importorskip("resource")
    predictor = make_predictor(uncertainty=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        results = predict_files(predictor, [scans], tmp_path / "out", format=format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    for number, result in enumerate(results):
        assert result.status == "failed"
        assert result.message.startswith(str(tmp_path / "out" / f"case{number}"))
        assert "could not be written" in result.message
        assert "partial" not in result.message
        assert "\n" not in result.message
    assert not list((tmp_path / "out").iterdir())


def test_an_output_never_replaces_an_input(scans: Path) -> None:
    with pytest.raises(VolumeError, match=r"case0\.nii\.gz"):
        predict_files(make_predictor(), [scans], scans)


def test_a_dicom_series_becomes_a_dicom_segmentation(tmp_path: Path) -> None:
    highdicom = pytest.importorskip("highdicom")
    series = write_series(tmp_path / "series")
    predictor = make_predictor(uncertainty=True, weights_sha256=["abc"])
    (result,) = predict_files(predictor, [series], tmp_path / "out", format="dicom-seg")
    assert (result.status, result.output) == ("done", str(tmp_path / "out" / "series.dcm"))
    names = {"series.dcm", "series.json", "series_entropy.nii.gz"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names
    found = highdicom.seg.segread(result.output)
    labels = predictor.predict(series).array
    voxels = found.get_pixels_by_source_instance(
        [uid for *_, uid in found.get_source_image_uids()], segment_numbers=[1], assert_missing_frames_are_empty=True
    )
    assert np.count_nonzero(voxels) == np.count_nonzero(labels) > 0
    assert (found.ManufacturerModelName, found.DeviceSerialNumber) == ("small_segmentation", "abc")
    record = json.loads((tmp_path / "out" / "series.json").read_text())
    assert result.warnings == record["warnings"]
    (again,) = predict_files(predictor, [series], tmp_path / "out", format="dicom-seg")
    assert (again.status, again.volumes_ml) == ("skipped", result.volumes_ml)


def test_dicom_segmentations_of_other_files_are_refused_before_the_network_runs(scans: Path, tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    predictor = make_predictor()
    with pytest.raises(VolumeError, match=r"case0\.nii\.gz.*--format"):
        predict_files(predictor, [scans], tmp_path / "out", format="dicom-seg")
    assert calls(predictor) == 0
    (absent,) = predict_files(predictor, [tmp_path / "absent"], tmp_path / "out", format="dicom-seg")
    assert "no such file" in absent.message


def test_probabilities_of_a_png_are_tiff(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 9, (20, 30)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(picture), tmp_path / "a.png")
    plan = small_plan(labels=TWO, normalization=[{"scheme": "none"}], spacing=None, spatial_dims=2, orientation="LP",
                      patch=[8, 8], tile=[8, 8])  # fmt: skip
    predictor = Predictor(ThresholdNetwork(4), plan, "cpu", save_probabilities=True, uncertainty=True)
    for status in ("done", "skipped"):
        (result,) = predict_files(predictor, [tmp_path / "a.png"], tmp_path / "out")
        assert (result.status, result.message) == (status, "" if status == "done" else "finished by an earlier run")
    names = ["a.json", "a.png", "a_entropy.png", "a_probability_background.tif", "a_probability_bright.tif"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    bright = read_volume(tmp_path / "out" / names[-1])
    np.testing.assert_array_equal(bright.array > 0.5, read_volume(tmp_path / "out" / "a.png").array == 1)


@pytest.mark.parametrize("format", ["png", "tiff"])
def test_a_format_that_cannot_keep_the_grid_is_refused_before_the_network_runs(
    scans: Path, tmp_path: Path, format: Any
) -> None:
    predictor = make_predictor()
    results = predict_files(predictor, [scans], tmp_path / "out", format=format)
    assert [r.status for r in results] == ["failed"] * 3
    assert all("cannot keep the geometry of" in r.message for r in results)
    assert calls(predictor) == 0
