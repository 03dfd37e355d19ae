"""Folds: parts are disjoint and complete, patients stay together, and missing files are named."""

from pathlib import Path

import pytest
from datasets.manifests import IDS, load, splits, write_case, write_manifest

from medseg.datasets import case_files, fold_cases, read_manifest
from medseg.errors import ManifestError


@pytest.mark.parametrize("name", ["hippocampus", "em_membrane", "phantom_cells"])
def test_parts_are_disjoint_and_complete(name: str) -> None:
    manifest = read_manifest(name)
    for fold in set(manifest.folds) - {manifest.test_fold}:
        parts = [set(fold_cases(manifest, fold, part)) for part in ("training", "validation", "test")]
        assert sum(map(len, parts)) == len(set.union(*parts)) == len(manifest.cases)
        assert parts[1] == set(manifest.folds[fold])
        assert parts[2] == set(manifest.folds[0])


def test_all_trains_on_everything_but_the_test_fold() -> None:
    manifest = read_manifest("hippocampus")
    training = fold_cases(manifest, "all", "training")
    assert set(training) == set(manifest.case_ids) - set(manifest.folds[0])
    assert list(training) == sorted(training)
    assert fold_cases(manifest, "all", "validation") == manifest.folds[1]
    assert fold_cases(manifest, "1", "training") == fold_cases(manifest, 1, "training")


def test_no_folds_means_everything_trains(tmp_path: Path) -> None:
    manifest = load(tmp_path, folds={}, test_fold=None)
    assert fold_cases(manifest, "all", "training") == tuple(IDS)
    assert fold_cases(manifest, "all", "validation") == fold_cases(manifest, "all", "test") == ()


@pytest.mark.parametrize(
    ("fold", "part", "facts"),
    [
        (0, "training", "fold 0.*test fold.*1, 2, 3"),
        (7, "training", "fold 7.*1, 2, 3"),
        ("some", "validation", "fold 'some'"),
        (1, "train", "'train'.*training, validation, test"),
    ],
)
def test_wrong_fold_or_part(tmp_path: Path, fold: int | str, part: str, facts: str) -> None:
    with pytest.raises(ManifestError, match=facts):
        fold_cases(load(tmp_path), fold, part)


def test_a_fold_set_chooses_other_cases(tmp_path: Path) -> None:
    manifest, whole = read_manifest("hippocampus", folds="by_patient"), read_manifest("hippocampus")
    for case_id in whole.case_ids:
        for paths in whole.paths(tmp_path, case_id).values():
            for path in paths:
                path.parent.mkdir(exist_ok=True)
                path.touch()
    for part in ("training", "validation", "test"):
        found = case_files("hippocampus", tmp_path, fold=2, part=part, fold_set="by_patient")
        assert [case["case"] for case in found] == list(fold_cases(manifest, 2, part))


def test_records_for_monai(tmp_path: Path) -> None:
    manifest = load(tmp_path)
    for case_id in IDS:
        write_case(tmp_path, case_id)
    records = case_files(manifest, tmp_path, fold=1, part="validation")
    assert records == [
        {"image": f"{tmp_path}/images/{case}.nii.gz", "label": f"{tmp_path}/labels/{case}.nii.gz", "case": case}
        for case in ("a1", "a2")
    ]
    from monai.transforms import LoadImaged

    assert LoadImaged(("image", "label"))(records[0])["image"].shape == (4, 5, 6)


def test_absent_files_are_an_error_or_one_warning(tmp_path: Path) -> None:
    manifest = load(tmp_path)
    for case_id in ("a1", "b1", "c1"):
        write_case(tmp_path, case_id)
    (tmp_path / "labels" / "c1.nii.gz").unlink()
    with pytest.raises(ManifestError, match=r"2 of 3 training cases.*: c1, d1 .*c1\.nii\.gz"):
        case_files(manifest, tmp_path, fold=1, part="training")
    with pytest.warns(UserWarning, match="2 of 3 training cases .*: c1, d1") as caught:
        records = case_files(manifest, tmp_path, fold=1, part="training", missing="skip")
    assert len(caught) == 1
    assert [record["case"] for record in records] == ["b1"]
    with pytest.raises(ManifestError, match="1 of 1 test cases"):
        case_files(manifest, tmp_path, fold=1, part="test", missing="skip")
    with pytest.raises(ManifestError, match="'ignore'"):
        case_files(manifest, tmp_path, missing="ignore")  # type: ignore[arg-type]


def test_several_channels_are_a_list(tmp_path: Path) -> None:
    manifest = load(
        tmp_path,
        channels=[{"name": "t1", "modality": "MR"}, {"name": "t2", "modality": "MR"}],
        files={"image": ["{case}_0000.nii", "{case}_0001.nii"], "label": "{case}.nii"},
        source={},
    )
    for case_id in manifest.folds[2]:
        for end in ("_0000", "_0001", ""):
            (tmp_path / f"{case_id}{end}.nii").touch()
    (record,) = case_files(manifest, tmp_path, fold=2, part="validation")
    assert record["image"] == [f"{tmp_path}/b1_0000.nii", f"{tmp_path}/b1_0001.nii"]


def test_a_fold_without_training_cases_is_refused(tmp_path: Path) -> None:
    manifest = load(tmp_path, folds={0: IDS[:2], 1: IDS[2:]}, test_fold=0)
    with pytest.raises(ManifestError, match=r"fold 1.*test fold 0"):
        case_files(manifest, tmp_path, fold=1)
    assert fold_cases(manifest, "all", "training") == tuple(IDS[2:])


def test_a_split_is_used_as_written(tmp_path: Path) -> None:
    manifest = read_manifest(write_manifest(tmp_path, splits(["d1", "b1"], ["a1", "a2"])))
    assert fold_cases(manifest, 0, "training") == ("d1", "b1")
    assert fold_cases(manifest, 0, "validation") == fold_cases(manifest, "all", "validation") == ("a1", "a2")
    assert fold_cases(manifest, "all", "training") == tuple(IDS)
    assert fold_cases(manifest, 0, "test") == ()
    with pytest.raises(ManifestError, match=r"fold 1.*0"):
        fold_cases(manifest, 1, "training")
