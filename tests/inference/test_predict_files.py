"""Tests of predicting many scans: outputs, order, progress and options."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from inference.counting import calls, make_predictor

from medseg.errors import OptionError
from medseg.inference import predict_files


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


def test_the_record_states_the_seconds_of_reading(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(64, 64, 64)).astype(np.float32)
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "scan.nii.gz")
    predict_files(make_predictor(), [tmp_path / "scan.nii.gz"], tmp_path / "out")
    assert json.loads((tmp_path / "out" / "scan.json").read_text())["seconds"]["read"] > 0


def test_a_memory_limit_is_kept_or_refused_per_scan(scans: Path, tmp_path: Path) -> None:
    results = predict_files(make_predictor(max_ram="8GB"), [scans], tmp_path / "out")
    assert [r.status for r in results] == ["done"] * 3
    refused = predict_files(make_predictor(max_ram="1MB"), [scans], tmp_path / "refused")
    assert [r.status for r in refused] == ["failed"] * 3
    assert "1 MB" in refused[0].message
    assert not (tmp_path / "refused").exists()


def test_an_unknown_format_is_refused_before_the_work(scans: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"dicom-seg.*'dicom'"):
        predict_files(make_predictor(), [scans], tmp_path / "out", format="dicom")  # type: ignore[arg-type]


def test_an_impossible_output_folder_is_refused_before_the_network_runs(scans: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to("nowhere")
    predictor = make_predictor()
    for out in ("file", "file/below", "dangling", "dangling/below"):
        with pytest.raises(OptionError, match=out.split("/")[0]):
            predict_files(predictor, [scans], tmp_path / out)
    assert calls(predictor) == 0


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a folder nobody can write to")
def test_an_unwritable_output_folder_is_refused_before_the_network_runs(scans: Path) -> None:
    predictor = make_predictor()
    with pytest.raises(OptionError, match="/proc"):
        predict_files(predictor, [scans], "/proc/outputs")
    assert calls(predictor) == 0


def test_a_run_without_work_needs_no_writable_folder(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict_files(make_predictor(), [scans], tmp_path / "out")

    def refused(*args: object, **kwargs: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    assert [r.status for r in predict_files(make_predictor(), [scans], tmp_path / "out")] == ["skipped"] * 3
    with pytest.raises(OptionError, match=r"out.*Read-only file system"):
        predict_files(make_predictor(overlap=0.25), [scans], tmp_path / "out")
