"""Folds: parts are disjoint and complete, patients stay together, absent files are named."""

from pathlib import Path

import pytest
from datasets.manifests import IDS, load, write_case

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
    ("fold", "part", "message"),
    [
        (0, "training", "fold 0 is the test fold; validate on one of 1, 2, 3"),
        (7, "training", "has no fold 7; choose one of 1, 2, 3, or all"),
        ("some", "validation", "has no fold 'some'"),
        (1, "train", "part must be one of training, validation, test, found 'train'"),
    ],
)
def test_wrong_fold_or_part(tmp_path: Path, fold: int | str, part: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        fold_cases(load(tmp_path), fold, part)


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
    with pytest.raises(ManifestError, match=r"2 of 3 training cases are not under .*: c1, d1 \(no .*c1\.nii\.gz\)"):
        case_files(manifest, tmp_path, fold=1, part="training")
    with pytest.warns(UserWarning, match="2 of 3 training cases .* left out: c1, d1") as caught:
        records = case_files(manifest, tmp_path, fold=1, part="training", missing="skip")
    assert len(caught) == 1
    assert [record["case"] for record in records] == ["b1"]
    with pytest.raises(ManifestError, match="1 of 1 test cases are not under"):
        case_files(manifest, tmp_path, fold=1, part="test", missing="skip")
    with pytest.raises(ManifestError, match="missing must be error or skip"):
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


def test_a_fold_that_leaves_nothing_to_train_on_is_refused(tmp_path: Path) -> None:
    manifest = load(tmp_path, folds={0: IDS[:2], 1: IDS[2:]}, test_fold=0)
    with pytest.raises(
        ManifestError, match=r"fold 1 leaves no case to train on, there is no other fold but 0, the test fold; add one"
    ):
        case_files(manifest, tmp_path, fold=1)
    assert fold_cases(manifest, "all", "training") == tuple(IDS[2:])
