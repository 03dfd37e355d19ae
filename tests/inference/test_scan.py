"""Tests of reading scans: digests of the inputs, modalities and units."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from inference.counting import TWO, make_predictor
from inference.plans import small_plan
from inference.thin_network import ThresholdNetwork
from volumes.affines import affine_for, rotation_z
from volumes.dicom_series import write_series

from medseg.errors import VolumeError
from medseg.inference import Predictor, predict_files
from medseg.inference.scan import load_scan
from medseg.volumes import Grid, Volume, image_sha256, nifti, read_volume, write_volume


def test_a_file_has_the_digest_of_its_content(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(b"voxels" * 1000)
    assert image_sha256(tmp_path / "a.nii") == hashlib.sha256(b"voxels" * 1000).hexdigest()


def test_the_digest_of_a_series_changes_with_any_name_or_content(tmp_path: Path) -> None:
    folder = tmp_path / "series"
    folder.mkdir()
    (folder / "1").write_bytes(b"one")
    (folder / "2").write_bytes(b"two")
    digests = {image_sha256(folder)}
    (folder / "2").write_bytes(b"TWO")
    digests.add(image_sha256(folder))
    (folder / "2").rename(folder / "3")
    digests.add(image_sha256(folder))
    (folder / "4").touch()
    digests.add(image_sha256(folder))
    assert len(digests) == 4


def test_the_digest_of_a_detached_header_includes_the_voxels(tmp_path: Path) -> None:
    for suffix in ("mhd", "nhdr", "hdr"):
        path = tmp_path / f"scan.{suffix}"
        digests = set()
        for value in (1, 2):
            array = np.full((3, 3, 3), value, np.uint8)
            if suffix == "hdr":
                nib.save(nib.Nifti1Pair(array, np.eye(4)), path)
            else:
                sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
            digests.add((path.read_bytes(), image_sha256(path)))
        assert len({header for header, _ in digests}) == 1
        assert len(digests) == 2


@pytest.mark.parametrize(("modality", "lines"), [("MR", 1), ("CT", 0), ("ct", 0)])
def test_a_series_of_another_modality_is_a_warning(
    modality: str, lines: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The warning is logged by `predict`, and part of the record and of the result."""
    plan = small_plan(channels=[{"name": "abdomen", "modality": modality}], labels=TWO, spacing=None)
    predictor, series = Predictor(ThresholdNetwork(), plan, "cpu"), write_series(tmp_path / "series")
    with caplog.at_level(logging.WARNING):
        (result,) = predict_files(predictor, [series], tmp_path / "out")
        assert caplog.messages == []
        segmentation = predictor.predict(series)
    record = json.loads((tmp_path / "out" / "series.json").read_text())
    for notes in (caplog.messages, result.warnings, record["warnings"], segmentation.provenance["warnings"]):
        assert len(notes) == lines
        if lines:
            assert all(fact in notes[0] for fact in ("CT", "small_segmentation", "MR (abdomen)"))


def test_unusual_units_are_a_warning_of_their_scan(scans: Path, tmp_path: Path) -> None:
    image = nib.load(scans / "case1.nii.gz")
    image.header.set_xyzt_units("micron")
    nib.save(image, scans / "case1.nii.gz")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = predict_files(make_predictor(), [scans], tmp_path / "out")
    assert [len(result.warnings) for result in results] == [0, 1, 0]
    assert "case1.nii.gz: declares micron as its unit" in results[1].warnings[0]


def test_an_image_without_a_modality_gives_no_warning() -> None:
    assert load_scan((np.zeros((4, 5, 6), np.int16), np.eye(4)), small_plan()).notes == ()


@pytest.mark.parametrize("code", ["RAS", "LPS", "ARI"])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha", ".mgz"])
def test_a_volume_of_one_slice_is_an_image_for_a_2d_network(tmp_path: Path, code: str, suffix: str) -> None:
    array = np.random.default_rng(0).normal(size=(12, 13, 1)).astype(np.float32)
    like = Volume(array, Grid(array.shape, rotation_z(7) @ affine_for(code, (0.7, 1.3, 2.9))))
    path = write_volume(tmp_path / f"scan{suffix}", array, like)
    plan = small_plan(spatial_dims=2, orientation="RA", spacing=None, patch=[16, 16], tile=[16, 16], labels=TWO,
                      normalization=[{"scheme": "none"}])  # fmt: skip
    predictor = Predictor(ThresholdNetwork(), plan, "cpu")
    (result,) = predict_files(predictor, [path], tmp_path / "out")
    assert result.status == "done", result.message
    saved, given = read_volume(result.output), read_volume(path)
    np.testing.assert_array_equal(saved.array, given.array > 0)
    assert saved.grid.shape == (12, 13, 1)
    assert saved.grid.displacement_mm(given.grid) < 1e-4
    assert saved.grid.orientation == given.grid.orientation


def test_a_slice_in_another_plane_is_refused(tmp_path: Path) -> None:
    plan = small_plan(spatial_dims=2, orientation="RA", spacing=None, patch=[16, 16], tile=[16, 16])
    for shape in ((12, 13, 1), (12, 13)):
        path = tmp_path / f"{len(shape)}d.nii"
        nib.save(nib.Nifti1Image(np.zeros(shape, np.float32), affine_for("ASR")), path)
        with pytest.raises(VolumeError, match=rf"{path.name}: .*AS.*RA"):
            load_scan(path, plan)


def test_the_slices_of_a_series_are_one_scan(tmp_path: Path) -> None:
    series = write_series(tmp_path / "series")
    expected = predict_files(make_predictor(), [series], tmp_path / "whole")
    results = predict_files(make_predictor(), [series / "*.dcm"], tmp_path / "files")
    assert [(r.case, r.status) for r in results] == [("series", "done")]
    np.testing.assert_array_equal(read_volume(results[0].output).array, read_volume(expected[0].output).array)
    (result,) = predict_files(make_predictor(), [series / "02.dcm"], tmp_path / "one")
    np.testing.assert_array_equal(read_volume(result.output).array, read_volume(expected[0].output).array)
    assert any("6 slices" in warning for warning in result.warnings)
    again = predict_files(make_predictor(), [series / "02.dcm"], tmp_path / "one")
    assert [r.status for r in again] == ["skipped"]


@pytest.mark.parametrize("is_in_place", [True, False])
def test_a_scan_that_is_replaced_while_it_is_read_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_in_place: bool
) -> None:
    """Its record would have the digest of a scan that was not segmented."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in "ab":
        nib.save(nib.Nifti1Image(np.ones((4, 5, 6), np.float32), np.eye(4)), folder / f"{name}.nii")
    first = (folder / "a.nii").stat()

    def read_and_replace(path: Path) -> Volume:
        volume = read(path)
        if path.name == "a.nii":
            content = path.read_bytes()
            other = path if is_in_place else path.with_name("other")
            other.write_bytes(content[:-4] + bytes(4))
            other.replace(path)
            os.utime(path, ns=(first.st_atime_ns, first.st_mtime_ns))  # as rsync and a clock that was set back do
        return volume

    read = nifti.read
    monkeypatch.setattr(nifti, "read", read_and_replace)
    results = predict_files(make_predictor(), [folder], tmp_path / "out")
    assert [r.status for r in results] == ["failed", "done"]
    assert "a.nii: was changed while it was read" in results[0].message
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["b.json", "b.nii"]
