"""Raw datasets of nnU-Net and the Decathlon, read as manifests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from datasets.manifests import AFFINE
from PIL import Image

from medseg.datasets import case_files, fold_cases, prepare, read_case, read_manifest
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
    """Write a raw dataset of 4×5×6 voxels; `channels` are the endings of the image names."""
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


def test_splits_that_are_a_partition_become_folds(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "D", V2, ["_0000", "_0001"])
    splits = [{"train": IDS[3:], "val": IDS[:3]}, {"train": IDS[:3], "val": IDS[3:]}]
    (root / "splits_final.json").write_text(json.dumps(splits))
    manifest = read_manifest(root)
    assert fold_cases(manifest, 1, "validation") == tuple(IDS[3:])
    assert fold_cases(manifest, 1, "training") == tuple(IDS[:3])
    assert manifest.splits == {}


@pytest.mark.parametrize(
    "splits",
    [
        [(["c0"], ["c3", "c4", "c5"])],  # a single hold-out that leaves cases out
        [(["c0", "c1", "c2", "c3"], ["c4", "c5"]), (["c1", "c2", "c4", "c5"], ["c3", "c0"])],  # disjoint, not complete
        [(["c0", "c1", "c2"], ["c3", "c4"]), (["c0", "c1", "c5"], ["c3", "c2"])],  # random splits that overlap
        [(["c3", "c4"], ["c0", "c1", "c2"]), (["c0", "c1", "c2"], ["c3", "c4", "c5"])],  # validation sets are complete
    ],
)
def test_other_splits_are_used_as_written(tmp_path: Path, splits: list[tuple[list[str], list[str]]]) -> None:
    root = write_dataset(tmp_path / "D", V2, ["_0000", "_0001"])
    content = [{"train": training, "val": validation} for training, validation in splits]
    (root / "splits_final.json").write_text(json.dumps(content))
    manifest = read_manifest(root)
    for number, (training, validation) in enumerate(splits):
        assert fold_cases(manifest, number, "training") == tuple(training)
        assert fold_cases(manifest, number, "validation") == tuple(validation)
        assert [record["case"] for record in case_files(manifest, root, fold=number)] == training


@pytest.mark.parametrize(
    ("splits", "facts"),
    [
        ('{"train": []}', "train"),
        ("[", "splits_final.json"),
        ('[{"train": ["c0"], "val": ["c9"]}]', "split 0.*'c9'"),
        ('[{"train": ["c0"], "val": ["c0"]}]', "split 0.*c0"),
    ],
)
def test_broken_splits_name_their_file(tmp_path: Path, splits: str, facts: str) -> None:
    root = write_dataset(tmp_path / "D", V2, ["_0000", "_0001"])
    (root / "splits_final.json").write_text(splits)
    with pytest.raises(ManifestError, match=facts) as caught:
        read_manifest(root)
    assert str(caught.value).startswith(f"{root / 'splits_final.json'}: ")
    assert "\n" not in str(caught.value)


def test_channels_of_one_name(tmp_path: Path) -> None:
    content = V2 | {"channel_names": {"0": "rgb_to_0_1", "1": "rgb_to_0_1"}}
    manifest = read_manifest(write_dataset(tmp_path / "D", content, ["_0000", "_0001"]))
    assert [channel.modality for channel in manifest.channels] == ["rgb_to_0_1"] * 2


def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "D", V2, ["_0000", "_0001"])
    plain = read_manifest(root)
    for file, text in (("dataset.json", json.dumps(V2)), ("splits_final.json", "[]")):
        (root / file).write_text(text, encoding="utf-8-sig")
    assert read_manifest(root).labels == plain.labels


def test_an_ignore_label_is_not_a_label(tmp_path: Path) -> None:
    content = V2 | {"labels": V2["labels"] | {"ignore": 3}}
    manifest = read_manifest(write_dataset(tmp_path / "D", content, ["_0000", "_0001"]))
    assert (manifest.ignore_label, "ignore" in manifest.labels) == (3, False)


def test_a_dataset_is_verified_in_place_and_evaluated(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "Daten sätze", V2, ["_0000", "_0001"])
    before = sorted(path.stat().st_mtime_ns for path in root.rglob("*.nii.gz"))
    report = prepare(root)
    assert (report.method, report.present, report.num_written) == ("verified", tuple(IDS), 0)
    assert report.lines()[0] == f"Daten sätze: 6 of 6 cases verified under {root}"
    assert sorted(path.stat().st_mtime_ns for path in root.rglob("*.nii.gz")) == before
    evaluation = evaluate(root / "labelsTr", root / "labelsTr", labels=root, num_draws=2000)
    assert evaluation.mean("dice", "organ") == 1.0


def test_other_manifests_need_a_folder() -> None:
    with pytest.raises(ManifestError, match=r"hippocampus.*--root"):
        prepare("hippocampus")


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"labels": {"background": 0, "whole": [1, 2]}}, "regions_class_order.*1.*None"),
        ({"labels": {"background": 0, "whole": [1, 2]}, "regions_class_order": [3]}, "regions_class_order.*3.*whole"),
        ({"labels": {"background": 0, "whole": [1, 2]}, "regions_class_order": [1, 2]}, "regions_class_order.*1.*2"),
        ({"labels": {"whole": [1, 2]}, "regions_class_order": [1]}, "labels.*background: 0"),
        ({"labels": {"tumour": 1, "organ": 2}}, "background: 0"),
        ({"labels": {"a": "x", "b": "y"}}, "labels.*'x'"),
        ({"labels": None}, "labels.*None"),
        ({"channel_names": {"1": "CT"}}, "channel_names.*'1'"),
        ({"channel_names": {"0": "CT"}, "numTraining": 7}, "numTraining.*labelsTr.*6 .*7"),
        ({"file_ending": ".b2nd"}, "'.b2nd'"),
        ({"file_ending": ".nrrd"}, "labelsTr.*.nrrd"),
        ({"dataset": {"c0": {}}}, "dataset.*images"),
    ],
)
def test_a_broken_rule_is_one_line_that_names_the_file(tmp_path: Path, changes: dict[str, Any], facts: str) -> None:
    root = write_dataset(tmp_path / "D", V2 | changes, ["_0000", "_0001"])
    with pytest.raises(ManifestError, match=facts) as caught:
        read_manifest(root)
    assert str(caught.value).startswith(f"{root / 'dataset.json'}: ")
    assert "\n" not in str(caught.value)


def test_folders_that_are_incomplete(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(V2))
    with pytest.raises(ManifestError, match="labelsTr"):
        read_manifest(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(ManifestError, match=r"dataset\.json.*JSON"):
        read_manifest(tmp_path)
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(ManifestError, match=r"layout.*dataset\.json"):
        read_manifest(tmp_path)


def test_channels_in_one_file_of_the_decathlon(tmp_path: Path) -> None:
    root = write_dataset(tmp_path, V1 | {"modality": {"0": "T1", "1": "FLAIR"}}, [])
    channels = np.random.default_rng(0).normal(size=(4, 5, 6, 2)).astype(np.float32)
    for case in IDS:
        nib.save(nib.Nifti1Image(channels, AFFINE), root / "imagesTr" / f"{case}.nii.gz")
    manifest = read_manifest(root)
    assert (manifest.has_channels_in_one_file, manifest.channel_names) == (True, ("T1", "FLAIR"))
    assert prepare(root).present == tuple(IDS)
    (record, *_) = case_files(manifest, root)
    volumes = read_case(manifest, {"image": [Path(record["image"])], "label": [Path(record["label"])]}, "c0")
    assert [np.array_equal(volumes["image"][c].array, channels[..., c]) for c in range(2)] == [True, True]
    one = nib.Nifti1Image(channels[..., 0], AFFINE)
    nib.save(one, root / "imagesTr" / "c3.nii.gz")
    assert [all(fact in line for fact in ("c3.nii.gz", "1 channels", "2 (T1")) for line in prepare(root).problems] == [
        True
    ]


@pytest.mark.parametrize("form", ["list", "number"])
def test_regions(tmp_path: Path, form: str) -> None:
    core = [2] if form == "list" else 2
    labels = {"background": 0, "whole": [1, 2], "core": core, "ignore": 3}
    content = V2 | {"labels": labels, "regions_class_order": [1, 2]}
    manifest = read_manifest(write_dataset(tmp_path / "D", content, ["_0000", "_0001"]))
    assert dict(manifest.labels) == {"background": 0, "label 1": 1, "core": 2}
    assert manifest.structures == {"whole": (1, 2), "core": (2,)}
    assert (manifest.regions_class_order, manifest.ignore_label) == ((1, 2), 3)


def test_files_that_are_listed_one_by_one(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "D", V2, ["_0000", "_0001"])
    listed = {
        f"p{number}": {
            "images": [f"imagesTr/c{number}_000{channel}.nii.gz" for channel in range(2)],
            "label": f"labelsTr/c{number}.nii.gz",
        }
        for number in range(6)
    }
    (root / "dataset.json").write_text(json.dumps(V2 | {"dataset": listed}))
    manifest = read_manifest(root)
    assert manifest.case_ids == tuple(listed)
    assert case_files(manifest, root)[0]["image"] == [str(root / path) for path in listed["p0"]["images"]]
    assert prepare(root).present == tuple(listed)


def test_a_colour_picture_in_place_of_one_file_per_channel(tmp_path: Path) -> None:
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    picture = np.arange(126, dtype=np.uint8).reshape(6, 7, 3)
    Image.fromarray(picture).save(tmp_path / "imagesTr" / "s0_0000.png")
    Image.fromarray(picture[..., 0] % 2).save(tmp_path / "labelsTr" / "s0.png")
    content = {"channel_names": {"0": "R", "1": "G", "2": "B"}, "labels": {"background": 0, "cell": 1}}
    (tmp_path / "dataset.json").write_text(json.dumps(content | {"numTraining": 1, "file_ending": ".png"}))
    manifest = read_manifest(tmp_path)
    assert (manifest.spatial_dims, manifest.has_channels_in_one_file) == (2, True)
    assert prepare(tmp_path).present == ("s0",)
    volumes = read_case(manifest, manifest.paths(tmp_path, "s0"), "s0")["image"]
    assert [np.array_equal(volumes[c].array, picture[..., c].T) for c in range(3)] == [True] * 3


def test_a_dataset_whose_cases_all_lack_a_channel_names_the_first_missing_file(tmp_path: Path) -> None:
    root = write_dataset(tmp_path, V2, ["_0000"])
    with pytest.raises(ManifestError, match=r"c0_0001\.nii\.gz"):
        prepare(root)
