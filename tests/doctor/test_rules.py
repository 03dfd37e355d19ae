"""Each rule finds the problem that was made for it, and nothing in a data set without a problem."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from doctor.data_sets import SPOILT, change, image_file, label_file, names, save, write_data_set
from PIL import Image
from scipy import ndimage

from medseg.datasets import read_manifest
from medseg.datasets.manifest import Split
from medseg.doctor import examine
from medseg.doctor.findings import all_rules
from medseg.doctor.outlier_rules import outliers
from medseg.errors import ManifestError


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
    for fact in (all_rules()[problem.rule].title, problem.found, problem.advice):
        assert fact in line
    assert "\n" not in line


def test_every_rule_is_tested():
    assert {problem.rule for problem in SPOILT} | {"no-files", "left-out"} == {*all_rules()}


def test_the_documentation_lists_every_rule_in_order():
    page = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE) == list(all_rules())


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


def test_test_images_are_read_in_both_layouts_and_may_differ(tmp_path):
    nnunet = write_data_set(tmp_path / "nnunet")
    decathlon = shutil.copytree(nnunet, tmp_path / "decathlon")
    for path in (decathlon / "imagesTr").iterdir():
        path.rename(path.with_name(path.name.replace("_0000", "")))
    for folder, ending in ((nnunet, "_0000.nii.gz"), (decathlon, ".nii.gz")):
        other = np.random.default_rng(9).normal(0, 1, (16, 18, 14))
        save(folder / "imagesTs" / f"other{ending}", other)
        assert examine(folder, use_cache=False).findings == ()
        shutil.copy(folder / "imagesTr" / f"scan_004{ending}", folder / "imagesTs" / f"copy{ending}")
        (finding,) = examine(folder, use_cache=False).findings
        assert (finding.rule, finding.cases) == ("test-leak", ("scan_004",))
        assert "imagesTs/copy" in finding.line()


def test_a_split_must_not_train_on_its_test_cases(tmp_path):
    manifest = read_manifest(write_data_set(tmp_path / "livers"))
    split = Split(tuple(names()[:6]), (names()[6],), (names()[7],))
    cases = tuple(
        replace(case, patient="p" if case.id in (names()[1], names()[7]) else case.id) for case in manifest.cases
    )
    found = examine(replace(manifest, cases=cases, folds={}, splits={0: split}), use_cache=False).findings
    leaks = [finding for finding in found if finding.rule == "leak"]
    assert [finding.cases for finding in leaks] == [(names()[1], names()[7])]
    assert "(training)" in leaks[0].line()
    assert "(test)" in leaks[0].line()


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
        save(image, np.minimum(np.asarray(nib.load(image).dataobj), 1))
    assert examine(folder, use_cache=False).findings == ()


def test_many_outliers_are_one_note_about_two_groups(tmp_path):
    folder = write_data_set(tmp_path / "livers", names(12))
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


def two_folders(tmp_path, count):
    """Return a data set of two folders, without a file that describes it."""
    folder = write_data_set(tmp_path / "plain", names(count))
    (folder / "dataset.json").unlink()
    (folder / "imagesTr").rename(folder / "images")
    (folder / "labelsTr").rename(folder / "labels")
    for file in (folder / "images").iterdir():
        file.rename(file.with_name(file.name.replace("_0000", "")))
    return folder


def test_a_folder_without_a_manifest(tmp_path):
    folder = two_folders(tmp_path, 8)
    assert examine(folder, use_cache=False).findings == ()
    (folder / "labels" / "scan_003.nii.gz").unlink()
    (folder / "images" / "scan_004.nii.gz").unlink()
    (folder / "labels" / "scan_005.nii.gz").write_bytes(b"")
    result = examine(folder, use_cache=False)
    assert len(result.dataset.cases) == 5
    lines = [finding.line() for finding in result.findings]
    assert len(lines) == 3
    assert any("images/scan_003.nii.gz" in line and "has no label map" in line for line in lines)
    assert any("labels/scan_004.nii.gz" in line and "has no image" in line for line in lines)
    assert any(line.startswith("case scan_005") and "0 bytes" in line for line in lines)


@pytest.mark.parametrize("count", [1, 2])
def test_few_cases_in_two_folders(tmp_path, count):
    (finding,) = examine(two_folders(tmp_path, count), use_cache=False).findings
    assert (finding.rule, finding.severity) == ("few-cases", "note")
    assert f"{count} case" in finding.line()


@pytest.mark.parametrize("removed", ["images", "labels"])
def test_only_images_or_only_labels_are_one_line(tmp_path, removed):
    folder = two_folders(tmp_path, 3)
    shutil.rmtree(folder / removed)
    with pytest.raises(ManifestError, match="plain") as error:
        examine(folder, use_cache=False)
    assert "\n" not in str(error.value)


def test_several_channels_in_one_file(tmp_path):
    folder = write_data_set(tmp_path / "livers", channels=("t1", "t2"))
    for case in names():
        files = [image_file(folder, case, channel) for channel in (0, 1)]
        arrays = [np.asarray(nib.load(file).dataobj) for file in files]
        affine = nib.load(files[0]).affine
        for file in files:
            file.unlink()
        if case == "scan_004":
            arrays[1] = arrays[0]
        if case == "scan_006":
            arrays[1] = np.where(arrays[1] == arrays[1].max(), np.nan, arrays[1])
        save(folder / "imagesTr" / f"{case}.nii.gz", np.stack(arrays[:1] if case == "scan_002" else arrays, -1), affine)
    found = {finding.rule: finding for finding in examine(folder, use_cache=False).findings}
    assert {*found} == {"same-channel", "non-finite", "unreadable"}
    assert "holds 1 channels where 2 are expected" in found["unreadable"].line()
    assert found["same-channel"].cases == ("scan_004",)
    assert found["non-finite"].cases == ("scan_006",)


def test_structures_that_were_not_annotated_are_not_missing(tmp_path):
    folder = write_data_set(tmp_path / "livers", names(12))
    change(label_file(folder, "scan_002"), lambda array: np.minimum(array, 1))
    manifest = read_manifest(folder)
    assert [finding.rule for finding in examine(manifest, folder, use_cache=False).findings] == ["missing-structure"]
    cases = tuple(replace(case, labels=("liver",)) if case.id == "scan_002" else case for case in manifest.cases)
    assert examine(replace(manifest, cases=cases), folder, use_cache=False).findings == ()


def test_pictures_of_colours_with_an_ignored_border(tmp_path):
    rng = np.random.default_rng(0)
    for number, case in enumerate(names(6)):
        for part in ("images", "labels"):
            (tmp_path / part).mkdir(exist_ok=True)
        colors = ndimage.zoom(rng.integers(0, 255, (6, 8, 3)), (8, 8, 1), order=1).astype(np.uint8)
        Image.fromarray(colors).save(tmp_path / "images" / f"{case}.png")
        label = np.full((48, 64), 255, np.uint8)
        label[2:-2, 2:-2] = 0
        label[8 : 20 + number, 8:30], label[24:40, 30 + number : 60] = 1, 2
        Image.fromarray(label).save(tmp_path / "labels" / f"{case}.png")
    result = examine(tmp_path, use_cache=False)
    assert result.findings == ()
    assert result.dataset.manifest.ignore_label == 255
    assert [len(facts.images) for facts in result.dataset.cases.values()] == [3] * 6
    assert result.dataset.cases["scan_001"].images[0].foreground.count == 12 * 22 + 16 * 30
    Image.fromarray(np.zeros((48, 60), np.uint8)).save(tmp_path / "labels" / "scan_002.png")
    assert {finding.rule for finding in examine(tmp_path, use_cache=False).findings} == {"grid", "empty-label"}
