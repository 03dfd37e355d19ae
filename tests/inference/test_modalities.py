import json
import logging
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from inference.counting import TWO, make_predictor
from inference.plans import small_plan
from inference.thin_network import ThresholdNetwork
from volumes.dicom_series import write_series

from medseg.inference import Predictor, predict_files
from medseg.inference.scan import load_scan


@pytest.mark.parametrize(("modality", "lines"), [("MR", 1), ("CT", 0), ("ct", 0)])
def test_a_series_of_another_modality_is_told_of(
    modality: str, lines: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By a line of the log from Python; by the record and the result's warnings where many are predicted."""
    plan = small_plan(channels=[{"name": "abdomen", "modality": modality}], labels=TWO, spacing=None)
    predictor, series = Predictor(ThresholdNetwork(), plan, "cpu"), write_series(tmp_path / "series")
    with caplog.at_level(logging.WARNING):
        (result,) = predict_files(predictor, [series], tmp_path / "out")
        assert caplog.messages == []
        segmentation = predictor.predict(series)
    record = json.loads((tmp_path / "out" / "series.json").read_text())
    for told in (caplog.messages, result.warnings, record["warnings"], segmentation.provenance["warnings"]):
        assert len(told) == lines
        if lines:
            assert all(fact in told[0] for fact in ("CT", "small_segmentation", "MR (abdomen)"))


def test_odd_units_are_told_of_with_the_scan_they_belong_to(scans: Path, tmp_path: Path) -> None:
    image = nib.load(scans / "case1.nii.gz")
    image.header.set_xyzt_units("micron")
    nib.save(image, scans / "case1.nii.gz")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = predict_files(make_predictor(), [scans], tmp_path / "out")
    assert [len(result.warnings) for result in results] == [0, 1, 0]
    assert "case1.nii.gz: declares micron as its unit" in results[1].warnings[0]


def test_an_image_that_does_not_tell_its_modality_is_taken() -> None:
    assert load_scan((np.zeros((4, 5, 6), np.int16), np.eye(4)), small_plan()).notes == ()
