"""Tests of restarted runs: finished cases are skipped, and files of other programs are never replaced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from inference.counting import calls, make_predictor

from medseg.errors import VolumeError
from medseg.inference import predict_files


def test_a_second_run_skips_cases_finished_by_the_same_model(scans: Path, tmp_path: Path) -> None:
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


def test_a_result_is_finished_with_or_without_a_memory_limit(scans: Path, tmp_path: Path) -> None:
    for options, expected in (({"max_ram": "8GB"}, "done"), ({}, "skipped"), ({"max_ram": "9GB"}, "skipped")):
        results = predict_files(make_predictor(**options), [scans], tmp_path / "out")
        assert [r.status for r in results] == [expected] * 3


def test_a_replaced_scan_is_predicted_again(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict_files(make_predictor(), [scans], out)
    image = nib.load(scans / "case1.nii.gz")
    nib.save(nib.Nifti1Image(-image.get_fdata().astype(np.float32), image.affine), scans / "case1.nii.gz")
    assert [r.status for r in predict_files(make_predictor(), [scans], out)] == ["skipped", "done", "skipped"]
    np.testing.assert_array_equal(nib.load(out / "case1.nii.gz").get_fdata(), image.get_fdata() < 0)


def test_a_second_run_writes_maps_that_the_first_did_not(scans: Path, tmp_path: Path) -> None:
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


def test_the_record_of_another_format_does_not_finish_a_case(scans: Path, tmp_path: Path) -> None:
    """Segmentations of both formats share one record, which describes the later one."""
    out = tmp_path / "out"

    def statuses(format: Any, **options: Any) -> set[str]:
        return {r.status for r in predict_files(make_predictor(**options), [scans], out, format=format)}

    statuses("nifti", overlap=0.25)
    statuses("nrrd")
    assert statuses("nifti") == {"done"}
    assert statuses("nifti") == {"skipped"}


def test_maps_of_a_replaced_result_are_removed(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict_files(make_predictor(uncertainty=True, save_probabilities=True), [scans / "case0.nii.gz"], out)
    (out / "case0_entropy_mine.nii.gz").write_text("of others")
    predict_files(make_predictor(save_probabilities=True, overlap=0.25), [scans / "case0.nii.gz"], out)
    assert not (out / "case0_entropy.nii.gz").exists()
    assert len(list(out.glob("case0_probability_*"))) == 2
    predict_files(make_predictor(overlap=0.0), [scans / "case0.nii.gz"], out)
    assert sorted(p.name for p in out.iterdir()) == ["case0.json", "case0.nii.gz", "case0_entropy_mine.nii.gz"]


@pytest.mark.parametrize("content", ['{"RepetitionTime": 2.3}', '["notice", "plan_sha256"]', "{half"])
def test_a_json_of_another_program_is_kept(scans: Path, tmp_path: Path, content: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "case1.json").write_text(content)
    predictor = make_predictor()
    with pytest.raises(VolumeError, match=r"case1\.json"):
        predict_files(predictor, [scans], out, overwrite=True)
    with pytest.raises(VolumeError, match=r"case1\.json"):
        predictor.predict(scans / "case1.nii.gz").save(out / "case1.nii.gz")
    assert [p.name for p in out.iterdir()] == ["case1.json"]
    assert (out / "case1.json").read_text() == content


def test_a_mask_without_a_record_is_replaced_only_with_overwrite(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("case1.nii.gz", "case2_entropy.nii.gz"):
        (out / name).write_bytes(b"drawn by hand")
    predictor = make_predictor(uncertainty=True)
    with pytest.raises(VolumeError, match=r"case1\.nii\.gz.*--overwrite"):
        predict_files(predictor, [scans], out)
    assert calls(predictor) == 0
    assert {p.name: p.read_bytes() for p in out.iterdir()} == dict.fromkeys(
        ("case1.nii.gz", "case2_entropy.nii.gz"), b"drawn by hand"
    )
    assert {r.status for r in predict_files(predictor, [scans], out, overwrite=True)} == {"done"}
    assert nib.load(out / "case1.nii.gz").shape == (8, 9, 11)
    assert {r.status for r in predict_files(predictor, [scans], out)} == {"skipped"}


def test_outputs_are_not_inputs_of_a_second_run(scans: Path) -> None:
    for expected in ("done", "skipped"):
        results = predict_files(make_predictor(), [scans], scans / "predictions")
        assert [(r.case, r.status) for r in results] == [(f"case{i}", expected) for i in range(3)]


def test_a_segmentation_that_was_corrected_by_hand_is_replaced_only_with_overwrite(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict_files(make_predictor(), [scans], out)
    corrected = nib.Nifti1Image(np.ones((8, 9, 11), np.uint8), np.eye(4))
    nib.save(corrected, out / "case1.nii.gz")
    content = (out / "case1.nii.gz").read_bytes()
    assert {r.status for r in predict_files(make_predictor(), [scans], out)} == {"skipped"}
    predictor = make_predictor(overlap=0.25)
    with pytest.raises(VolumeError, match=r"case1\.nii\.gz: was changed after .*--overwrite"):
        predict_files(predictor, [scans], out)
    assert calls(predictor) == 0
    assert (out / "case1.nii.gz").read_bytes() == content
    assert {r.status for r in predict_files(predictor, [scans], out, overwrite=True)} == {"done"}
