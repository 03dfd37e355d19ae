"""nnU-Net's raw format and the Decathlon's, read as manifests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets.manifests import AFFINE

from medseg.datasets import case_files, fold_cases, prepare, read_manifest
from medseg.datasets.nnunet import default_folds
from medseg.errors import ManifestError
from medseg.evaluation import evaluate
from medseg.volumes import Grid, Volume, write_volume

V2: dict[str, Any] = {
    "channel_names": {"0": "CT", "1": "PET"},
    "labels": {"background": 0, "tumour": 1, "organ": 2},
    "numTraining": 6,
    "file_ending": ".nii.gz",
}
V1: dict[str, Any] = {
    "name": "Tumours",
    "modality": {"0": "MRI"},
    "labels": {"0": "background", "1": "tumour", "2": "organ"},
    "licence": "CC-BY-SA 4.0",
    "reference": "Somebody 2018",
    "numTraining": 6,
    "training": [{"image": "./imagesTr/c0.nii.gz", "label": "./labelsTr/c0.nii.gz"}],
}
IDS = [f"c{number}" for number in range(6)]


def write(path: Path, array: np.ndarray) -> None:
    write_volume(path, array, Volume(array, Grid(array.shape, AFFINE)))


def write_dataset(root: Path, content: dict[str, Any], channels: list[str], ids: list[str] = IDS) -> Path:
    """A raw data set of 4×5×6 voxels; `channels` are the endings of the images' stems."""
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    label = np.zeros((4, 5, 6), np.uint8)
    label[1:3, 1:3, 1:3], label[3, 3, 3] = 1, 2
    for case in ids:
        for channel in channels:
            write(root / "imagesTr" / f"{case}{channel}.nii.gz", label.astype(np.float32))
        write(root / "labelsTr" / f"{case}.nii.gz", label)
    (root / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def test_version_2_by_folder_or_file(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "Dataset007_Tumours", V2, ["_0000", "_0001"])
    manifest = read_manifest(root)
    assert manifest == read_manifest(root / "dataset.json") == read_manifest(str(root / "dataset.json"))
    assert manifest.name == "Dataset007_Tumours"
    assert [(c.name, c.modality) for c in manifest.channels] == [("CT", "CT"), ("PET", "PET")]
    assert manifest.labels == {"background": 0, "tumour": 1, "organ": 2}
    assert manifest.case_ids == tuple(IDS)
    first = case_files(manifest, root)[0]
    assert first["image"] == [str(root / "imagesTr" / f"c0_000{c}.nii.gz") for c in range(2)]
    assert first["label"] == str(root / "labelsTr" / "c0.nii.gz")


@pytest.mark.parametrize("channel", ["", "_0000"])
def test_decathlon_and_version_1(tmp_path: Path, channel: str) -> None:
    root = write_dataset(tmp_path / "Task07", V1, [channel])
    manifest = read_manifest(root)
    assert manifest.labels == {"background": 0, "tumour": 1, "organ": 2}
    assert (manifest.name, manifest.licence, manifest.citations) == ("Tumours", "CC-BY-SA 4.0", ("Somebody 2018",))
    assert manifest.channels[0].modality == "MR"
    assert case_files(manifest, root)[0]["image"] == str(root / "imagesTr" / f"c0{channel}.nii.gz")


def test_default_folds_are_those_of_nnunet() -> None:
    manifest = read_manifest("hippocampus")  # its folds were copied from nnU-Net
    expected = {number: sorted(ids) for number, ids in manifest.folds.items()}
    assert default_folds(list(manifest.case_ids)[::-1]) == expected
    assert default_folds(IDS[:4]) == {}


def test_splits_final_is_taken_where_it_is(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "D", V2, ["_0000", "_0001"])
    splits = [{"train": IDS[3:], "val": IDS[:3]}, {"train": IDS[:3], "val": IDS[3:]}]
    (root / "splits_final.json").write_text(json.dumps(splits))
    manifest = read_manifest(root)
    assert fold_cases(manifest, 1, "validation") == tuple(IDS[3:])
    assert fold_cases(manifest, 1, "training") == tuple(IDS[:3])


def test_an_ignore_label_is_one(tmp_path: Path) -> None:
    content = V2 | {"labels": V2["labels"] | {"ignore": 3}}
    manifest = read_manifest(write_dataset(tmp_path / "D", content, ["_0000", "_0001"]))
    assert (manifest.ignore_label, "ignore" in manifest.labels) == (3, False)


def test_it_is_verified_where_it_lies_and_evaluated(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "Daten sätze", V2, ["_0000", "_0001"])
    before = sorted(path.stat().st_mtime_ns for path in root.rglob("*.nii.gz"))
    report = prepare(root)
    assert (report.method, report.present, report.num_written) == ("verified", tuple(IDS), 0)
    assert report.lines()[0] == f"Daten sätze: 6 of 6 cases verified under {root}"
    assert sorted(path.stat().st_mtime_ns for path in root.rglob("*.nii.gz")) == before
    evaluation = evaluate(root / "labelsTr", root / "labelsTr", labels=root, num_draws=2000)
    assert evaluation.mean("dice", "organ") == 1.0


def test_a_manifest_needs_a_folder_unless_the_files_lie_beside_it() -> None:
    with pytest.raises(ManifestError, match="hippocampus: give the folder of the data set, --root"):
        prepare("hippocampus")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"labels": {"background": 0, "whole": [1, 2]}}, "whole are regions of several values"),
        ({"labels": {"tumour": 1, "organ": 2}}, "no name has value 0"),
        ({"labels": {"a": "x", "b": "y"}}, "from names to whole numbers"),
        ({"labels": None}, "labels must be like"),
        ({"channel_names": {"1": "CT"}}, "numbered from 0"),
        ({"channel_names": {"0": "CT"}, "numTraining": 7}, "numTraining is 7, but .*labelsTr holds 6 label maps"),
        ({"file_ending": ".b2nd"}, "file_ending '.b2nd' is no format medseg reads"),
        ({"file_ending": ".nrrd"}, "holds no label map that ends in .nrrd"),
        ({"dataset": {"c0": {}}}, "lists files one by one"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_file(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    root = write_dataset(tmp_path / "D", V2 | changes, ["_0000", "_0001"])
    with pytest.raises(ManifestError, match=says) as caught:
        read_manifest(root)
    assert str(caught.value).startswith(f"{root / 'dataset.json'}: ")
    assert "\n" not in str(caught.value)


def test_folders_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(V2))
    with pytest.raises(ManifestError, match="no folder labelsTr"):
        read_manifest(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(ManifestError, match=r"not valid JSON"):
        read_manifest(tmp_path)
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(ManifestError, match=r"a folder without dataset\.json"):
        read_manifest(tmp_path)


def test_one_file_for_several_channels_is_refused(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "D", V1 | {"modality": {"0": "T1", "1": "FLAIR"}}, [""])
    with pytest.raises(ManifestError, match=r"one file for 2 channels; split it into _0000"):
        read_manifest(root)


def test_broken_splits_name_their_file(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "D", V2, ["_0000", "_0001"])
    (root / "splits_final.json").write_text('{"train": []}')
    with pytest.raises(ManifestError, match=r"splits_final\.json: not a list of train and val"):
        read_manifest(root)
