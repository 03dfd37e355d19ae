"""Tests of collecting cases from inputs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from volumes.dicom_series import write_series

from medseg.errors import VolumeError
from medseg.inference.cases import find_cases


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.nii.gz", "a.nrrd", "notes.txt", ".hidden.nii", "sub/c.nii", "dicom/IM0001", "dicom/IM0002"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def names(*inputs: str | Path, channels: int = 1) -> list[str]:
    return [case.name for case in find_cases(inputs, channels)]


def test_files_folders_and_globs(folder: Path) -> None:
    assert names(folder / "b.nii.gz", folder / "a.nrrd") == ["b", "a"]
    assert names(folder) == ["a", "b", "c"]
    assert names(str(folder / "*.n*")) == ["a", "b"]
    assert names(folder / "b.nii.gz", folder / "b.nii.gz") == ["b"]


def test_a_folder_without_images_is_a_dicom_series(folder: Path) -> None:
    (case,) = find_cases([folder / "dicom"], 1)
    assert (case.name, case.paths) == ("dicom", (folder / "dicom",))


def test_a_missing_image_is_a_case_that_fails_later(tmp_path: Path) -> None:
    assert names(tmp_path / "absent.nii.gz") == ["absent"]


def test_channels_are_grouped_by_suffix_in_files_folders_and_case_folders(tmp_path: Path) -> None:
    for name in ("x_0001.nii.gz", "x_0000.nii.gz", "case7/case7_0000.nii.gz", "case7/case7_0001.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    cases = find_cases([tmp_path], 2)
    assert [(c.name, [p.name for p in c.paths]) for c in cases] == [
        ("x", ["x_0000.nii.gz", "x_0001.nii.gz"]),
        ("case7", ["case7_0000.nii.gz", "case7_0001.nii.gz"]),
    ]
    assert names(tmp_path / "case7", channels=2) == ["case7"]


def test_one_channel_models_distinguish_channel_suffixes_from_case_numbers(tmp_path: Path) -> None:
    for name in ("alone_0000.nii", "pat_0000.nii", "pat_0001.nii", "brats_0042.nii"):
        (tmp_path / name).touch()
    assert names(tmp_path) == ["alone", "brats_0042", "pat_0000", "pat_0001"]


def test_ambiguous_inputs_are_refused(folder: Path) -> None:
    with pytest.raises(VolumeError, match=r"\*"):
        find_cases([str(folder / "*.mha")], 1)
    (folder / "x_0001.nii").touch()
    (case,) = find_cases([folder / "x_0001.nii"], 2)
    assert re.search(r"x_0001\.nii.*x_0000.*0001", case.problem)
    (folder / "sub" / "b.nii").touch()
    with pytest.raises(VolumeError, match=r"b\.nii\.gz"):
        find_cases([folder], 1)


def test_a_file_named_twice_by_different_paths_is_one_case(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.nii.gz").touch()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert names(tmp_path / "a" / "x.nii.gz", tmp_path / "link" / "x.nii.gz", tmp_path / "a" / ".." / "a") == ["x"]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.nii.gz").touch()
    with pytest.raises(VolumeError, match=r"x\.nii\.gz"):
        names(tmp_path / "a", tmp_path / "b")


def test_the_output_folder_is_not_an_input(folder: Path) -> None:
    (folder / "predictions").mkdir()
    (folder / "predictions" / "a.nrrd").touch()
    out = folder / "predictions"
    for given in (folder, str(folder / "*"), str(folder / "**" / "*.nrrd")):
        found = find_cases([given], 1, exclude=folder / "sub" / ".." / "predictions")
        assert not [path for case in found for path in case.paths if out in path.parents]
        assert "a" in [case.name for case in found]
    # An input that names the output folder is not excluded.
    assert [c.name for c in find_cases([out / "a.nrrd"], 1, exclude=out)] == ["a"]
    assert [c.name for c in find_cases([out], 1, exclude=out)] == ["a"]
    assert [c.name for c in find_cases([str(out / "*.nrrd")], 1, exclude=out)] == ["a"]
    with pytest.raises(VolumeError, match=r"\*"):
        find_cases([str(folder / "*" / "a.nrrd")], 1, exclude=out)


@pytest.mark.parametrize("given", ["", "  "])
def test_an_empty_name_is_refused(given: str) -> None:
    with pytest.raises(VolumeError, match="empty"):
        find_cases([given], 1)


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
def test_weights_among_the_inputs_are_refused(folder: Path, name: str) -> None:
    with pytest.raises(VolumeError, match=f"{name}.*--weights"):
        find_cases([folder / "b.nii.gz", folder / name], 1)


def test_a_loop_of_links_is_a_case_that_fails_later(tmp_path: Path) -> None:
    (tmp_path / "x.nii").symlink_to(tmp_path / "y.nii")
    (tmp_path / "y.nii").symlink_to(tmp_path / "x.nii")
    assert names(tmp_path / "x.nii") == ["x"]
    assert names(tmp_path) == ["x", "y"]


def test_a_folder_stands_for_the_dicom_series_directly_below(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    for name in ("patient_a", "patient_b", "out"):
        write_series(tmp_path / "scans" / name)
    (tmp_path / "scans" / "notes").mkdir()
    (tmp_path / "scans" / "notes" / "readme.txt").write_text("no image")
    cases = find_cases([tmp_path / "scans"], exclude=tmp_path / "scans" / "out")
    assert [case.name for case in cases] == ["patient_a", "patient_b"]
    (tmp_path / "scans" / "c.nii.gz").touch()
    assert [case.name for case in find_cases([tmp_path / "scans"])] == ["c", "out", "patient_a", "patient_b"]
    assert [case.name for case in find_cases([tmp_path / "scans" / "patient_b"])] == ["patient_b"]
