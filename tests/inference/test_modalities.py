import logging
from pathlib import Path

import numpy as np
import pytest
from inference.plans import small_plan
from volumes.dicom_series import write_series

from medseg.inference.scan import load_scan


@pytest.mark.parametrize(("modality", "lines"), [("MR", 1), ("CT", 0), ("ct", 0)])
def test_a_series_of_another_modality_is_told_of(
    modality: str, lines: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = small_plan(channels=[{"name": "abdomen", "modality": modality}])
    with caplog.at_level(logging.WARNING):
        load_scan(write_series(tmp_path / "series"), plan)
    assert len(caplog.messages) == lines
    if lines:
        assert "modality is CT, small_segmentation was trained on MR (abdomen)" in caplog.messages[0]


def test_an_image_that_does_not_tell_its_modality_is_taken(caplog: pytest.LogCaptureFixture) -> None:
    load_scan((np.zeros((4, 5, 6), np.int16), np.eye(4)), small_plan())
    assert caplog.messages == []
