"""Many scans: outputs, second runs, bad scans among good ones, and damage of every kind."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from inference.plans import small_plan
from inference.thin_network import ThresholdNetwork
from volumes.dicom_series import write_series

from medseg.errors import OptionError, VolumeError
from medseg.inference import Predictor, predict_files

TWO = {"background": 0, "bright": 1}


class CountingNetwork(ThresholdNetwork):
    """Counts its forward passes."""

    def __init__(self, level: float = 0.0) -> None:
        super().__init__(level)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(x)


def make_predictor(**options: Any) -> Predictor:
    plan = small_plan(labels=TWO, normalization=[{"scheme": "none"}], spacing=None)
    predictor = Predictor(CountingNetwork(), plan, "cpu", **options)
    calls(predictor)
    return predictor


def calls(predictor: Predictor) -> int:
    """Forward passes since the last time this was asked, or since the backend tried the network out."""
    network: CountingNetwork = predictor.backend.network  # type: ignore[attr-defined]
    counted, network.calls = network.calls, 0
    return counted


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    folder.mkdir()
    for i in range(3):
        array = np.random.default_rng(i).normal(size=(8, 9, 10 + i)).astype(np.float32)
        nib.save(nib.Nifti1Image(array, np.diag([1.0, 2.0, 3.0, 1.0])), folder / f"case{i}.nii.gz")
    return folder


def test_every_scan_is_written_under_its_name_and_reported_in_order(scans: Path, tmp_path: Path) -> None:
    events: list[tuple] = []
    results = predict_files(
        make_predictor(), [scans], tmp_path / "out",
        on_start=lambda case, number, total: events.append(("start", case.name, number, total)),
        on_case=lambda result, number, total: events.append(("end", result.case, number, total)),
    )  # fmt: skip
    assert [(r.case, r.status) for r in results] == [(f"case{i}", "done") for i in range(3)]
    for i, result in enumerate(results):
        scan, saved = nib.load(scans / f"case{i}.nii.gz"), nib.load(result.output)
        np.testing.assert_array_equal(saved.get_fdata(), scan.get_fdata() > 0)
        assert result.volumes_ml["bright"] == pytest.approx(np.count_nonzero(scan.get_fdata() > 0) * 6 / 1000)
        json.dumps(result.to_dict())
    assert [e for e in events if e[0] == "end"] == [("end", f"case{i}", i, 3) for i in range(3)]
    assert [e for e in events if e[0] == "start"] == [("start", f"case{i}", i, 3) for i in range(3)]


def test_the_record_tells_how_long_reading_took(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(64, 64, 64)).astype(np.float32)
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "scan.nii.gz")
    predict_files(make_predictor(), [tmp_path / "scan.nii.gz"], tmp_path / "out")
    assert json.loads((tmp_path / "out" / "scan.json").read_text())["seconds"]["read"] > 0


def test_a_second_run_skips_what_is_finished_by_the_same_model(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict_files(make_predictor(weights_sha256=["a"]), [scans], out)
    (out / "case1.nii.gz").unlink()
    record = json.loads((out / "case2.json").read_text())
    (out / "case2.json").write_text(json.dumps({**record, "overlap": 0.9}))
    again = make_predictor(weights_sha256=["a"])
    results = predict_files(again, [scans], out)
    assert [r.status for r in results] == ["skipped", "done", "done"]
    assert calls(again) == 2
    other = make_predictor(weights_sha256=["b"])
    assert {r.status for r in predict_files(other, [scans], out)} == {"done"}
    assert {r.status for r in predict_files(other, [scans], out, overwrite=True)} == {"done"}


def test_a_replaced_scan_is_predicted_again(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict_files(make_predictor(), [scans], out)
    image = nib.load(scans / "case1.nii.gz")
    nib.save(nib.Nifti1Image(-image.get_fdata().astype(np.float32), image.affine), scans / "case1.nii.gz")
    assert [r.status for r in predict_files(make_predictor(), [scans], out)] == ["skipped", "done", "skipped"]
    np.testing.assert_array_equal(nib.load(out / "case1.nii.gz").get_fdata(), image.get_fdata() < 0)


def test_a_second_run_makes_the_maps_the_first_was_not_asked_for(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = predict_files(make_predictor(), [scans], out)
    both = {"uncertainty": True, "save_probabilities": True}
    assert {r.status for r in predict_files(make_predictor(**both), [scans], out)} == {"done"}
    maps = {p.name for p in out.iterdir() if p.name.startswith("case0_")}
    assert maps == {f"case0_{m}.nii.gz" for m in ("entropy", "probability_background", "probability_bright")}
    for fewer in ({}, {"uncertainty": True}, both):
        again = predict_files(make_predictor(**fewer), [scans], out)
        assert [(r.status, r.volumes_ml) for r in again] == [("skipped", r.volumes_ml) for r in first]
    (out / "case1_entropy.nii.gz").unlink()
    again = predict_files(make_predictor(**both), [scans], out)
    assert [r.status for r in again] == ["skipped", "done", "skipped"]


@pytest.mark.parametrize("content", ['{"RepetitionTime": 2.3}', '["notice", "plan_sha256"]', "{half"])
def test_a_json_that_is_not_medsegs_is_kept(scans: Path, tmp_path: Path, content: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "case1.json").write_text(content)
    predictor = make_predictor()
    with pytest.raises(VolumeError, match=r"case1\.json: exists and was not written by medseg; choose another output"):
        predict_files(predictor, [scans], out, overwrite=True)
    with pytest.raises(VolumeError, match=r"case1\.json: exists and was not written by medseg"):
        predictor.predict(scans / "case1.nii.gz").save(out / "case1.nii.gz")
    assert [p.name for p in out.iterdir()] == ["case1.json"]
    assert (out / "case1.json").read_text() == content


def test_a_mask_without_a_record_is_not_silently_replaced(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("case1.nii.gz", "case2_entropy.nii.gz"):
        (out / name).write_bytes(b"drawn by hand")
    predictor = make_predictor(uncertainty=True)
    rule = r"case1\.nii\.gz: exists without medseg's record beside it \(1 more files likewise\); .* with --overwrite"
    with pytest.raises(VolumeError, match=rule):
        predict_files(predictor, [scans], out)
    assert calls(predictor) == 0
    assert {p.name: p.read_bytes() for p in out.iterdir()} == dict.fromkeys(
        ("case1.nii.gz", "case2_entropy.nii.gz"), b"drawn by hand"
    )
    assert {r.status for r in predict_files(predictor, [scans], out, overwrite=True)} == {"done"}
    assert nib.load(out / "case1.nii.gz").shape == (8, 9, 11)
    assert {r.status for r in predict_files(predictor, [scans], out)} == {"skipped"}


def test_a_case_is_saved_with_all_its_files_or_not_at_all(scans: Path, tmp_path: Path) -> None:
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


def test_maps_of_one_case_never_replace_another_case(scans: Path, tmp_path: Path) -> None:
    (scans / "case0.nii.gz").rename(scans / "case1_entropy.nii.gz")
    with pytest.raises(VolumeError, match=r"case1_entropy\.nii\.gz: would be written for two cases"):
        predict_files(make_predictor(uncertainty=True), [scans], tmp_path / "out")
    assert {r.status for r in predict_files(make_predictor(), [scans], tmp_path / "out")} == {"done"}


def test_a_memory_limit_reads_one_scan_at_a_time_with_the_same_results(scans: Path, tmp_path: Path) -> None:
    results = predict_files(make_predictor(max_ram="8GB"), [scans], tmp_path / "out")
    assert [r.status for r in results] == ["done"] * 3
    refused = predict_files(make_predictor(max_ram="1MB"), [scans], tmp_path / "refused")
    assert [r.status for r in refused] == ["failed"] * 3
    assert "needs about" in refused[0].message
    assert not (tmp_path / "refused").exists()


def _nifti(shape: tuple[int, ...] = (4, 5, 6), **fields: Any) -> bytes:
    image = nib.Nifti1Image(np.ones(shape, np.float32), np.eye(4))
    for name, value in {"vox_offset": 352, **fields}.items():
        image.header[name] = value
    return image.header.binaryblock + b"\0" * 4 + np.ones(shape, np.float32).tobytes()


BAD_FILES: dict[str, bytes] = {
    "empty.nii": b"",
    "text.nii": b"not an image at all" * 50,
    "short_header.nii": _nifti()[:200],
    "header_only.nii": _nifti()[:352],
    "half.nii": _nifti()[:600],
    "one_byte_short.nii": _nifti()[:-1],
    "half_gzip.nii.gz": gzip.compress(_nifti((40, 40, 4)))[:60],
    "not_gzip.nii.gz": _nifti(),
    "huge_claim.nii": _nifti(dim=[3, 30000, 30000, 30000, 1, 1, 1, 1]),
    "zero_size.nii": _nifti(dim=[3, 4, 0, 6, 1, 1, 1, 1]),
    "negative_size.nii": _nifti(dim=[3, 4, -5, 6, 1, 1, 1, 1]),
    "unknown_type.nii": _nifti(datatype=9999),
    "rgb.nii": _nifti(datatype=128, bitpix=24),
    "complex.nii": _nifti(datatype=32, bitpix=64),
    "four_d.nii": _nifti((4, 5, 6, 2)),
    "two_d.nii": _nifti((4, 5)),
    "no_numbers.nii": _nifti()[:352] + np.full(120, np.nan, np.float32).tobytes(),
    "infinite.nii": _nifti()[:352] + np.full(120, np.inf, np.float32).tobytes(),
    "singular.nii": _nifti(srow_x=[0, 0, 0, 0], sform_code=1),
    "nan_affine.nii": _nifti(srow_x=[np.nan, 0, 0, 0], sform_code=1),
}


def test_every_kind_of_damage_is_one_line_and_the_good_scan_is_done(scans: Path, tmp_path: Path) -> None:
    for name, content in BAD_FILES.items():
        (scans / name).write_bytes(content)
    (scans / "dangling.nii").symlink_to(tmp_path / "nowhere.nii")
    (scans / "folder.nii").mkdir()
    out = tmp_path / "out"
    bad = [scans / name for name in (*BAD_FILES, "dangling.nii", "folder.nii")]
    results = predict_files(make_predictor(), [*bad, scans / "case0.nii.gz"], out)
    assert [r.case for r in results if r.status == "done"] == ["case0"]
    for path, result in zip(bad, results, strict=False):
        assert result.status == "failed", path
        assert path.name in result.message
        assert "\n" not in result.message
    assert sorted(p.name for p in out.iterdir()) == ["case0.json", "case0.nii.gz"]


def test_a_second_run_does_not_take_its_outputs_as_inputs(scans: Path) -> None:
    for expected in ("done", "skipped"):
        results = predict_files(make_predictor(), [scans], scans / "predictions")
        assert [(r.case, r.status) for r in results] == [(f"case{i}", expected) for i in range(3)]


def test_a_loop_of_links_is_one_line(scans: Path, tmp_path: Path) -> None:
    (scans / "x.nii").symlink_to("x.nii")
    results = predict_files(make_predictor(), [scans], tmp_path / "out")
    assert [r.status for r in results] == ["done"] * 3 + ["failed"]
    assert "x.nii" in results[3].message
    assert "\n" not in results[3].message


def test_an_output_folder_that_cannot_be_written_is_reported_for_each_scan(scans: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    results = predict_files(make_predictor(), [scans], tmp_path / "file")
    assert [r.status for r in results] == ["failed"] * 3
    assert all(str(tmp_path / "file") in r.message for r in results)
    if os.geteuid():  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        assert {r.status for r in predict_files(make_predictor(), [scans], tmp_path / "locked")} == {"failed"}


@pytest.mark.parametrize("format", ["nifti", "nrrd", "mha"])
def test_a_file_that_cannot_grow_is_one_line_and_leaves_nothing(scans: Path, tmp_path: Path, format: Any) -> None:
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
    with pytest.raises(VolumeError, match="would replace an input"):
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


def test_dicom_segmentations_of_other_files_are_refused_before_the_work(scans: Path, tmp_path: Path) -> None:
    pytest.importorskip("highdicom")
    predictor = make_predictor()
    with pytest.raises(
        VolumeError, match=r"case0\.nii\.gz: DICOM SEG needs a DICOM series as its input; choose another"
    ):
        predict_files(predictor, [scans], tmp_path / "out", format="dicom-seg")
    assert calls(predictor) == 0
    (absent,) = predict_files(predictor, [tmp_path / "absent"], tmp_path / "out", format="dicom-seg")
    assert "no such file" in absent.message


def test_an_unknown_format_is_refused_before_the_work(scans: Path, tmp_path: Path) -> None:
    rule = "format must be one of same, nifti, nrrd, mha, png, tiff, dicom-seg; found 'dicom'"
    with pytest.raises(OptionError, match=rule):
        predict_files(make_predictor(), [scans], tmp_path / "out", format="dicom")  # type: ignore[arg-type]


def test_a_defect_is_raised_and_not_called_out_of_memory(scans: Path, tmp_path: Path) -> None:
    class Broken(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("a defect")

    class Hungry(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.empty(2**60)

    plan = small_plan(labels=TWO, spacing=None)
    with pytest.raises(RuntimeError, match="a defect"):
        predict_files(Predictor(Broken(), plan, "cpu"), [scans], tmp_path / "out")
    results = predict_files(Predictor(Hungry(), plan, "cpu"), [scans], tmp_path / "out")
    assert [r.message.partition(";")[0] for r in results] == [
        f"{scans / f'case{i}.nii.gz'}: out of memory" for i in range(3)
    ]


def test_what_is_not_offered_for_sheared_scans_names_the_scan(scans: Path, tmp_path: Path) -> None:
    image = nib.load(scans / "case1.nii.gz")
    sheared = image.affine @ np.array([[1, 0, 0.4, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32), sheared), scans / "case1.nii.gz")
    plan = small_plan(labels=TWO, normalization=[{"scheme": "none"}])
    for options, expected in (({}, "done"), ({"uncertainty": True}, "failed")):
        predictor = Predictor(ThresholdNetwork(), plan, "cpu", **options)
        results = predict_files(predictor, [scans], tmp_path / expected)
        assert [r.status for r in results] == ["done", expected, "done"]
        if expected == "failed":
            assert results[1].message.startswith(f"{scans / 'case1.nii.gz'}: probabilities and uncertainty are not")
