"""Each rule finds the problem that was made for it, and nothing in a data set without a problem."""

import json
import shutil

import numpy as np
import pytest
from doctor.data_sets import SPOILT, image_file, label_file, names, save, write_data_set

from medseg.datasets import read_manifest
from medseg.doctor import examine
from medseg.doctor.findings import RULES, check_dataset
from medseg.doctor.outlier_rules import outliers


@pytest.mark.parametrize("problem", SPOILT, ids=lambda problem: problem.rule)
def test_the_line_names_the_case_the_rule_the_value_and_what_to_do(tmp_path, problem):
    folder = write_data_set(tmp_path / "livers", problem.cases, channels=problem.channels)
    manifest = read_manifest(folder)  # before the problem, which may remove the files that it is read from
    problem.spoil(folder)
    if (folder / "splits_final.json").exists():
        manifest = read_manifest(folder)
    found = [finding for finding in examine(manifest, use_cache=False).findings if finding.rule == problem.rule]
    assert len(found) == 1
    line = found[0].line()
    assert line.startswith((f"case {problem.case}", problem.case))
    for fact in (RULES[problem.rule].title, problem.found, problem.advice):
        assert fact in line
    assert "\n" not in line


def test_every_rule_is_tested():
    check_dataset  # noqa: B018  importing it is not enough: the rules register themselves with the first check
    assert {problem.rule for problem in SPOILT} | {"no-files"} == {*RULES}


@pytest.mark.parametrize("channels", [("mri",), ("t1", "t2")])
def test_a_clean_data_set_has_no_finding(tmp_path, channels):
    result = examine(write_data_set(tmp_path / "livers", channels=channels), use_cache=False)
    assert result.findings == ()
    assert len(result.dataset.cases) == 8


def test_all_problems_of_a_data_set_are_reported_at_once(tmp_path):
    folder = write_data_set(tmp_path / "livers")
    manifest = read_manifest(folder)
    wanted = {"constant", "tiny-piece", "grid", "non-finite", "label-values", "intensity"}
    chosen = {problem.rule: problem for problem in SPOILT if problem.rule in wanted and problem.channels == ("mri",)}
    for problem in chosen.values():
        problem.spoil(folder)
    assert {finding.rule for finding in examine(manifest, use_cache=False).findings} >= wanted


def test_cases_without_any_file_are_one_finding(tmp_path):
    folder = write_data_set(tmp_path / "livers")
    manifest = read_manifest(folder)
    for case in names()[:3]:
        image_file(folder, case).unlink()
        label_file(folder, case).unlink()
    (finding,) = examine(manifest, use_cache=False).findings
    assert finding.rule == "no-files"
    assert finding.cases == tuple(names()[:3])
    assert "3 of 8" in finding.line()


def test_a_data_set_without_any_label_map_is_one_error(tmp_path):
    folder = write_data_set(tmp_path / "livers")
    manifest = read_manifest(folder)
    shutil.rmtree(folder / "labelsTr")
    errors = [finding for finding in examine(manifest, use_cache=False).findings if finding.severity == "error"]
    assert [finding.rule for finding in errors] == ["missing-file"]
    assert "8 cases" in errors[0].line()


def test_three_hundred_classes_are_compared_one_by_one(tmp_path):
    labels = {"background": 0} | {f"structure_{value}": value for value in range(1, 301)}
    folder = write_data_set(tmp_path / "many", labels=labels)
    values = np.zeros((16, 18, 14), dtype=np.uint16)
    values[:15, :, :10].reshape(-1)[:2700] = 0
    values[:15, :18, :10] = (np.arange(15 * 18 * 10) % 300 + 1).reshape(15, 18, 10)
    for number, case in enumerate(names()):
        shifted = np.where(values > 0, (values + number - 1) % 300 + 1, 0).astype(np.uint16)
        save(label_file(folder, case), np.where(shifted == 300, 0, shifted).astype(np.uint16))
    found = examine(folder, use_cache=False).findings
    assert {finding.found for finding in found if finding.rule == "absent-structure"} == {
        "no voxel of structure_300 in 8 label maps"
    }
    assert not [finding for finding in found if finding.rule == "label-values"]


def test_a_single_class_has_no_finding(tmp_path):
    folder = write_data_set(tmp_path / "one", labels={"background": 0, "liver": 1})
    for case in names():
        image = label_file(folder, case)
        import nibabel as nib

        save(image, np.minimum(np.asarray(nib.load(image).dataobj), 1))
    assert examine(folder, use_cache=False).findings == ()


def test_many_outliers_are_one_note_about_two_groups(tmp_path):
    folder = write_data_set(tmp_path / "livers", names(12))
    import nibabel as nib

    for case in names(12)[:4]:
        save(image_file(folder, case), 1000 * np.asarray(nib.load(image_file(folder, case)).dataobj))
    (finding,) = examine(folder, use_cache=False).findings
    assert (finding.rule, finding.severity) == ("intensity", "note")
    assert finding.cases == tuple(names(12)[:4])


def test_outliers_are_those_beyond_six_robust_deviations():
    """Logarithms 0, ±d, ±2d, … have the median absolute deviation 2.5 d for ten values, by hand."""
    values = {str(number): float(np.exp(0.01 * number)) for number in range(-5, 6)}
    limit = 6 * 1.4826 * 0.03
    inside, outside = float(np.exp(limit - 0.02)), float(np.exp(limit + 0.02))
    assert [case for case, *_ in outliers(values | {"x": inside}, 1.01)] == []
    assert [case for case, *_ in outliers(values | {"x": outside}, 1.01)] == ["x"]
    assert outliers(values | {"x": outside}, 10.0) == []


def test_findings_become_valid_json(tmp_path):
    folder = write_data_set(tmp_path / "livers")
    manifest = read_manifest(folder)
    for problem in SPOILT:
        if problem.rule in ("non-finite", "label-values", "grid", "same-patient"):
            problem.spoil(folder)
    result = examine(manifest, use_cache=False)
    content = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert content["counts"]["error"] == sum(finding["severity"] == "error" for finding in content["findings"]) > 0
    assert set(content["findings"][0]) >= {"rule", "severity", "cases", "found", "expected", "advice"}


def test_the_table_fits_eighty_columns(tmp_path):
    long = tuple(f"a_rather_long_name_of_a_case_that_somebody_chose_{number:03d}" for number in range(8))
    folder = write_data_set(tmp_path / "livers", long)
    manifest = read_manifest(folder)
    for case in long[:3]:
        save(label_file(folder, case), np.full((16, 18, 14), 7, np.uint8), np.diag([1, 1, 5.0, 1]))
    lines = examine(manifest, use_cache=False).lines()
    assert max(map(len, lines)) <= 80
    assert any("label-values" in line for line in lines)
