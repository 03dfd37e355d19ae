import re
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from reporting.evaluations import write_image

from medseg.evaluation import evaluate
from medseg.evaluation.pairs import Structures
from medseg.reporting import write_report
from medseg.reporting.calibration import Coverage, measure_calibration, rank_correlation, risk_coverage

SHAPE, SPACING = (30, 24, 18), (2.0, 3.0, 4.0)


@pytest.fixture
def evaluated(tmp_path):
    """Three cases with probability and entropy maps; the second's probabilities have another shape."""
    rng = np.random.default_rng(0)
    affine = np.diag([*SPACING, 1.0])
    files: dict[str, dict] = {"reference": {}, "prediction": {}}
    arrays = {}
    for number in range(3):
        case = f"case_{number}"
        reference = np.zeros(SHAPE, np.uint8)
        reference[10:16, 8:14, 6:10] = 1
        probability = np.clip(0.8 * reference + rng.random(SHAPE) * 0.2, 0, 1).astype(np.float32)
        prediction = (probability > 0.85).astype(np.uint8)
        entropy = np.full(SHAPE, 51 * (number + 1), np.uint8)
        for role, array in (("reference", reference), ("prediction", prediction)):
            files[role][case] = write_image(tmp_path / role / f"{case}.nii.gz", array, affine)
        if number != 1:
            write_image(tmp_path / "prediction" / f"{case}_probability_cell.nii.gz", probability, affine)
        write_image(tmp_path / "prediction" / f"{case}_entropy.nii.gz", entropy, affine)
        arrays[case] = (reference, prediction, probability)
    write_image(tmp_path / "prediction" / "case_1_probability_cell.nii.gz", np.zeros((3, 3, 3), np.float32))
    return evaluate(files["prediction"], files["reference"], labels={"cell": 1}, num_draws=2000), arrays


def test_voxels_within_10_mm_are_counted_as_brute_force_does(evaluated):
    result, arrays = evaluated
    found = measure_calibration(result.summary["inputs"], Structures(), result.summary["label_values"])
    squared, count = 0.0, 0
    for case in ("case_0", "case_2"):
        reference, prediction, probability = arrays[case]
        inside = np.argwhere((reference == 1) | (prediction == 1)) * SPACING
        places = np.argwhere(np.ones(SHAPE, bool)) * SPACING
        near = np.array([((inside - place) ** 2).sum(axis=1).min() <= 100 + 1e-9 for place in places]).reshape(SHAPE)
        squared += ((probability[near].astype(float) - (reference[near] == 1)) ** 2).sum()
        count += near.sum()
    bins = found.bins["cell"]
    assert int(bins.counts.sum()) == count
    assert bins.brier_score == pytest.approx(squared / count)
    assert found.num_cases == {"cell": 2}
    assert "(3, 3, 3)" in found.problems["case_1"]
    assert found.uncertainty == pytest.approx({"case_0": 0.2, "case_2": 0.6})


def test_the_page_shows_calibration_and_names_unused_maps(evaluated, tmp_path):
    result, _ = evaluated
    written = write_report(result, tmp_path / "report.html")
    page = written.path.read_text(encoding="utf-8")
    assert "Reliability diagram" in page
    assert "Risk and coverage" in page
    found = measure_calibration(result.summary["inputs"], Structures(), result.summary["label_values"])
    assert f"cell ECE {found.bins['cell'].expected_error:.3f}" in page
    assert re.search(r'<svg class="figure".*observed frequency.*</svg>', page, re.DOTALL)
    assert any("case_1" in line and "probabilities left out" in line for line in written.left_out)


def test_without_matplotlib_the_numbers_remain_and_the_extra_is_named(evaluated, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result, _ = evaluated
    page = write_report(result, tmp_path / "report.html").path.read_text(encoding="utf-8")
    assert "Reliability diagram left out" in page
    assert "medseg[figures]" in page
    assert '<th scope="row">cell</th>' in page


def test_the_most_certain_cases_are_kept_first():
    uncertainty = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4, "e": 0.9}
    dice = {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.6, "e": float("nan")}
    assert risk_coverage(uncertainty, dice) == [
        Coverage(1.0, 4, pytest.approx(0.75)),
        Coverage(0.9, 4, pytest.approx(0.75)),
        Coverage(0.75, 3, pytest.approx(0.8)),
        Coverage(0.5, 2, pytest.approx(0.85)),
    ]
    assert rank_correlation(uncertainty, dice) == pytest.approx(-1)
    assert np.isnan(rank_correlation({"a": 1.0}, dice))
    assert risk_coverage({}, dice) == []


def test_maps_in_another_axis_order_are_reordered(evaluated):
    result, _ = evaluated
    expected = measure_calibration(result.summary["inputs"], Structures(), result.summary["label_values"])
    prediction = Path(result.summary["inputs"][0]["prediction"])
    for file in (prediction, prediction.with_name("case_0_probability_cell.nii.gz")):
        image = nib.load(file)
        turn = ornt_transform(io_orientation(image.affine), axcodes2ornt("PLS"))
        turned = nib.Nifti1Image(np.asarray(image.dataobj), image.affine).as_reoriented(turn)
        nib.save(nib.Nifti1Image(np.array(turned.dataobj), turned.affine), file)
    found = measure_calibration(result.summary["inputs"], Structures(), result.summary["label_values"])
    assert found.problems == expected.problems
    np.testing.assert_array_equal(found.bins["cell"].counts, expected.bins["cell"].counts)
    assert found.bins["cell"].brier_score == pytest.approx(expected.bins["cell"].brier_score)
