"""Every usual layout of a folder, against a listing that the test makes itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 (the field's spelling)
from PIL import Image
from volumes.dicom_series import write_slice

from medseg.datasets import (
    case_files,
    case_problems,
    describe_dataset,
    fold_cases,
    prepare,
    read_case,
    read_manifest,
    write_manifest,
)
from medseg.errors import ManifestError, OptionError

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])
LABEL = np.zeros((4, 5, 6), np.uint8)
LABEL[1], LABEL[2] = 1, 2
Cases = dict[str, tuple[list[str], str]]


def put(root: Path, name: str, array: np.ndarray = LABEL) -> str:
    """Write a file of any format; return its name."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix in (".png", ".jpg", ".tif"):
        Image.fromarray(array).save(path)
    elif path.suffix in (".nrrd", ".mha"):
        sitk.WriteImage(sitk.GetImageFromArray(np.ascontiguousarray(array.T)), str(path))
    elif path.suffix == ".mgz":
        nib.save(nib.MGHImage(array, AFFINE), path)
    else:
        nib.save(nib.Nifti1Image(array, AFFINE), path)
    return name


def two_folders(root: Path) -> Cases:
    return {
        f"c{n}": ([put(root, f"images/c{n}.nii.gz", LABEL * 9)], put(root, f"labels/c{n}.nii.gz")) for n in range(6)
    }


def suffixes(root: Path) -> Cases:
    return {
        f"c{n}": ([put(root, f"scans/c{n}_image.nrrd", LABEL * 9)], put(root, f"masks/c{n}_seg.nrrd")) for n in range(5)
    }


def two_suffixes(root: Path) -> Cases:
    """Names as the Spinal Cord Toolbox gives them, all in one folder."""
    ends = ("seg-manual", "gmseg_manual", "seg_manual", "wmseg-manual", "mask")
    return {f"s{n}": ([put(root, f"s{n}.nii.gz", LABEL * 9)], put(root, f"s{n}_{ends[n]}.nii.gz")) for n in range(5)}


def channels_by_number(root: Path) -> Cases:
    return {
        f"c{n}": (
            [put(root, f"imagesTr/c{n}_000{c}.mha", LABEL * 9) for c in range(2)],
            put(root, f"labelsTr/c{n}.mha"),
        )
        for n in range(5)
    }


def channels_by_name(root: Path) -> Cases:
    return {
        f"p_{n}": (
            [put(root, f"images/p_{n}_{c}.nii.gz", LABEL * 9) for c in ("flair", "t1")],
            put(root, f"segmentations/p_{n}.nii.gz"),
        )
        for n in range(5)
    }


def lits(root: Path) -> Cases:
    return {
        f"{n}": ([put(root, f"volume-{n}.nii", LABEL * 9)], put(root, f"segmentation-{n}.nii"))
        for n in (0, 1, 2, 10, 11)
    }


def case_folders(root: Path) -> Cases:
    return {
        f"B_{n}": (
            [put(root, f"B_{n}/B_{n}_{c}.nii.gz", LABEL * 9) for c in ("flair", "t1ce")],
            put(root, f"B_{n}/B_{n}_seg.nii.gz"),
        )
        for n in range(5)
    }


def plain_case_folders(root: Path) -> Cases:
    return {f"x{n}": ([put(root, f"x{n}/image.mgz", LABEL * 9)], put(root, f"x{n}/label.mgz")) for n in range(5)}


def bids(root: Path) -> Cases:
    cases: Cases = {}
    for n in range(5):
        for session in range(1, 2 + n % 2):
            name = f"sub-0{n}_ses-{session}"
            folder = f"sub-0{n}/ses-{session}/anat"
            image = put(root, f"{folder}/{name}_T1w.nii.gz", LABEL * 9)
            label = put(root, f"derivatives/manual/{folder}/{name}_desc-manual_dseg.nii.gz")
            cases[name] = ([image], label)
    return cases


def spinal_bids(root: Path) -> Cases:
    cases: Cases = {}
    for n in range(5):
        put(root, f"sub-{n}/anat/sub-{n}_T1w.nii.gz", LABEL * 9)
        image = put(root, f"sub-{n}/anat/sub-{n}_T2w.nii.gz", LABEL * 9)
        cases[f"sub-{n}"] = ([image], put(root, f"derivatives/labels/sub-{n}/anat/sub-{n}_T2w_label-SC_seg.nii.gz"))
    return cases


def pictures(root: Path) -> Cases:
    picture = np.arange(126, dtype=np.uint8).reshape(6, 7, 3)
    label = (picture[..., 0] // 3 % 3).astype(np.uint8)
    return {f"s{n}": ([put(root, f"img/s{n}.jpg", picture)], put(root, f"mask/s{n}.png", label)) for n in range(5)}


@pytest.mark.parametrize(
    ("write", "channels", "modality"),
    [
        (two_folders, ["image"], "unknown"),
        (suffixes, ["image"], "unknown"),
        (two_suffixes, ["image"], "unknown"),
        (channels_by_number, ["channel 0", "channel 1"], "unknown"),
        (channels_by_name, ["flair", "t1"], "MR"),
        (lits, ["image"], "unknown"),
        (case_folders, ["flair", "t1ce"], "MR"),
        (plain_case_folders, ["image"], "unknown"),
        (bids, ["T1w"], "MR"),
        (spinal_bids, ["T2w"], "MR"),
        (pictures, ["red", "green", "blue"], "RGB"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_layouts(tmp_path: Path, write: Callable[[Path], Cases], channels: list[str], modality: str) -> None:
    root = tmp_path / "my data"
    expected = write(root)
    manifest = describe_dataset(root)
    assert dict(manifest.labels) == {"background": 0, "label 1": 1, "label 2": 2}
    assert [channel.name for channel in manifest.channels] == channels
    assert {channel.modality for channel in manifest.channels} == {modality}
    assert manifest.spatial_dims == (2 if write is pictures else 3)
    written = tmp_path / "manifest.yaml"
    write_manifest(manifest, written)
    for found in (manifest, read_manifest(written), read_manifest(root)):
        assert found.case_ids == tuple(sorted(expected))
        for case, (images, label) in expected.items():
            assert found.paths(root, case) == {"image": [root / image for image in images], "label": [root / label]}
        assert sorted(case for ids in found.folds.values() for case in ids) == sorted(expected)
        assert not [line for case in expected for line in case_problems(found, found.paths(root, case), case)]
    assert prepare(written, root).present == manifest.case_ids
    (record, *_) = case_files(manifest, root)
    volumes = read_case(manifest, manifest.paths(root, record["case"]), record["case"])
    assert len(volumes["image"]) == len(channels)


def test_patients_of_bids_are_subjects_and_stay_in_one_fold(tmp_path: Path) -> None:
    bids(tmp_path)
    manifest = describe_dataset(tmp_path)
    assert {case.id: case.patient for case in manifest.cases} == {
        case.id: case.id.partition("_")[0] for case in manifest.cases
    }
    fold_of = {case: number for number, ids in manifest.folds.items() for case in ids}
    assert fold_of["sub-01_ses-1"] == fold_of["sub-01_ses-2"]
    assert fold_of["sub-03_ses-1"] == fold_of["sub-03_ses-2"]
    assert len(manifest.folds) == 5


def test_label_names_of_bids(tmp_path: Path) -> None:
    bids(tmp_path)
    (tmp_path / "derivatives" / "manual" / "dseg.tsv").write_text("index\tname\n0\tbackground\n1\tgrey\n2\twhite\n")
    assert dict(describe_dataset(tmp_path).labels) == {"background": 0, "grey": 1, "white": 2}


def test_images_of_a_session_on_the_grid_of_its_label_map_are_its_channels(tmp_path: Path) -> None:
    for n in range(3):
        for suffix in ("T1w", "FLAIR"):
            put(tmp_path, f"sub-{n}/anat/sub-{n}_{suffix}.nii.gz", LABEL * 9)
        put(tmp_path, f"sub-{n}/anat/sub-{n}_T2w.nii.gz", np.zeros((2, 3, 4), np.float32))
        put(tmp_path, f"sub-{n}/anat/sub-{n}_dseg.nii.gz")
    manifest = describe_dataset(tmp_path)
    assert [channel.name for channel in manifest.channels] == ["FLAIR", "T1w"]
    assert [path.name for path in manifest.paths(tmp_path, "sub-1")["image"]] == [
        "sub-1_FLAIR.nii.gz",
        "sub-1_T1w.nii.gz",
    ]


@pytest.mark.parametrize(
    "names", [("train", "trainannot"), ("train/images", "train/labels"), ("images/train", "labels/train")]
)
def test_train_val_and_test_folders(tmp_path: Path, names: tuple[str, str]) -> None:
    picture = np.zeros((6, 7, 3), np.uint8)
    label = (np.arange(42).reshape(6, 7) % 2).astype(np.uint8)
    for part in ("train", "val", "test"):
        for n in range(2):
            put(tmp_path, f"{names[0].replace('train', part)}/{part}{n}.png", picture)
            put(tmp_path, f"{names[1].replace('train', part)}/{part}{n}.png", label)
    manifest = describe_dataset(tmp_path)
    parts = {"training": "train", "validation": "val", "test": "test"}
    for part, name in parts.items():
        assert fold_cases(manifest, 0, part) == (f"{name}0", f"{name}1")
    write_manifest(manifest, tmp_path / "manifest.yaml")
    assert fold_cases(read_manifest(tmp_path), "all", "test") == ("test0", "test1")


def test_a_test_folder_without_a_validation_folder_is_the_test_fold(tmp_path: Path) -> None:
    for part, count in (("train", 6), ("test", 2)):
        for n in range(count):
            put(tmp_path, f"{part}/images/{part}{n}.nii.gz")
            put(tmp_path, f"{part}/labels/{part}{n}.nii.gz")
    manifest = describe_dataset(tmp_path)
    assert fold_cases(manifest, 0, "test") == ("test0", "test1")
    assert sorted(fold_cases(manifest, 0, "training") + fold_cases(manifest, 0, "validation")) == [
        f"train{n}" for n in range(6)
    ]


def test_a_folder_with_a_manifest_is_read_by_it(tmp_path: Path) -> None:
    two_folders(tmp_path)
    manifest = describe_dataset(tmp_path)
    write_manifest(manifest, tmp_path / "manifest.yaml")
    text = (tmp_path / "manifest.yaml").read_text().replace("label 1:", "liver:")
    (tmp_path / "manifest.yaml").write_text(text)
    assert list(describe_dataset(tmp_path).labels) == ["background", "liver", "label 2"]
    with pytest.raises(OptionError, match=r"manifest\.yaml"):
        write_manifest(manifest, tmp_path / "manifest.yaml")
    assert (tmp_path / "manifest.yaml").read_text() == text


def test_ct_is_found_by_its_air(tmp_path: Path) -> None:
    two_folders(tmp_path)
    hounsfield = np.where(LABEL > 0, 40, -1000).astype(np.int16)
    put(tmp_path, "images/c0.nii.gz", hounsfield)
    assert describe_dataset(tmp_path).channels[0].modality == "CT"
    assert describe_dataset(tmp_path, modality="MR").channels[0].modality == "MR"


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_label_values_of_any_integers(tmp_path: Path, dtype: type) -> None:
    label = LABEL.astype(dtype)
    label[0], label[1] = -3, 300
    for n in range(2):
        put(tmp_path, f"images/c{n}.nii.gz", LABEL)
        put(tmp_path, f"labels/c{n}.nii.gz", label)
    manifest = describe_dataset(tmp_path)
    assert dict(manifest.labels) == {"background": 0, "label -3": 301, "label 2": 2, "label 300": 300}
    assert manifest.label_of_value == {0: 0, -3: 301, 2: 2, 300: 300}
    ignoring = describe_dataset(tmp_path, ignored=-3)
    assert (ignoring.ignore_label, dict(ignoring.labels)) == (255, {"background": 0, "label 2": 2, "label 300": 300})
    assert ignoring.label_of_value[-3] == 255


def test_255_is_ignored_in_label_pictures_of_several_classes_only(tmp_path: Path) -> None:
    label = np.array([[0, 255, 1, 2]], np.uint8)
    for kind, array in (("several", label), ("two", np.minimum(label, 1) * 255)):
        put(tmp_path / kind, "images/a.png", label)
        put(tmp_path / kind, "labels/a.png", array)
    assert describe_dataset(tmp_path / "several").ignore_label == 255
    two = describe_dataset(tmp_path / "two")
    assert (two.ignore_label, dict(two.labels)) == (None, {"background": 0, "label 255": 255})


COLORS = {"Sky": (128, 128, 128), "Road": (128, 64, 128), "Car": (64, 0, 128), "Void": (0, 0, 0)}


@pytest.mark.parametrize("table", ["class_dict.csv", "label_colors.txt"])
def test_label_pictures_in_colours(tmp_path: Path, table: str) -> None:
    index = np.random.default_rng(0).integers(0, 4, (6, 7))
    colored = np.array(list(COLORS.values()), np.uint8)[index]
    for n in range(2):
        put(tmp_path, f"train/f{n}.png", colored)
        put(tmp_path, f"train_labels/f{n}_L.png", colored)
    with pytest.raises(ManifestError, match=r"f0_L\.png.*colours.*--labels"):
        describe_dataset(tmp_path)
    if table == "class_dict.csv":
        rows = [f"{name},{r},{g},{b}" for name, (r, g, b) in COLORS.items()]
        (tmp_path / table).write_text("\n".join(["name,r,g,b", *rows]))
    else:
        (tmp_path / table).write_text("\n".join(f"{r} {g} {b}\t\t{name}" for name, (r, g, b) in COLORS.items()))
    manifest = describe_dataset(tmp_path)
    assert dict(manifest.labels) == {"background": 0, "Sky": 1, "Road": 2, "Car": 3}
    assert manifest.ignore_label == 255
    write_manifest(manifest, tmp_path / "manifest.yaml")
    assert '"#804080": 2' in (tmp_path / "manifest.yaml").read_text().replace("'", '"')
    again = read_manifest(tmp_path)
    assert replace(again, path=manifest.path) == manifest
    assert prepare(tmp_path).present == ("f0", "f1")
    label = read_case(again, again.paths(tmp_path, "f0"), "f0")["label"][0].array
    decoded = np.vectorize(again.label_of_value.get)(label)
    assert np.array_equal(decoded.T, np.array([1, 2, 3, 255])[index])
    put(tmp_path, "train_labels/f1_L.png", np.full((6, 7, 3), 7, np.uint8))
    assert "#070707" in prepare(tmp_path).problems[0]


def test_palette_pictures_hold_indices(tmp_path: Path) -> None:
    index = np.random.default_rng(0).integers(0, 12, (6, 7)).astype(np.uint8)
    picture = Image.fromarray(index, mode="P")
    picture.putpalette(np.random.default_rng(1).integers(0, 256, 768).astype(np.uint8).tolist())
    for n in range(2):
        put(tmp_path, f"images/a{n}.png", index)
        (tmp_path / "labels").mkdir(exist_ok=True)
        picture.save(tmp_path / "labels" / f"a{n}.png")
    manifest = describe_dataset(tmp_path)
    assert set(manifest.labels.values()) == set(range(12))
    volume = read_case(manifest, manifest.paths(tmp_path, "a0"), "a0")["label"][0]
    assert np.array_equal(volume.array, index.T)


def test_a_table_in_which_0_is_a_class(tmp_path: Path) -> None:
    for n in range(2):
        put(tmp_path, f"images/a{n}.png", LABEL[:, :, 0])
        put(tmp_path, f"labels/a{n}.png", LABEL[:, :, 0])
    (tmp_path / "names.txt").write_text("sky\nroad\nvoid\n")
    manifest = describe_dataset(tmp_path, labels=tmp_path / "names.txt")
    assert dict(manifest.labels) == {"background": 0, "sky": 1, "road": 2}
    assert (manifest.label_of_value, manifest.ignore_label) == ({0: 1, 1: 2, 2: 255}, 255)


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("1 a\n1 b", ["same value"]),
        ("1 a\n2 a", ["a is given twice"]),
        ("1 a", ["no name for 2"]),
        ("name,r,g,b\na,1,2,999", ["999"]),
        ("one,two\n1,2", ["columns name and value"]),
        ("0 background\n1 void\n2 background", ["twice"]),
        ("", ["no label"]),
    ],
)
def test_a_table_that_cannot_be_used_is_one_line(tmp_path: Path, text: str, facts: list[str]) -> None:
    put(tmp_path, "images/a.nii.gz")
    put(tmp_path, "labels/a.nii.gz")
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(ManifestError) as caught:
        describe_dataset(tmp_path, labels=tmp_path / "names.txt")
    assert all(fact in str(caught.value) for fact in ["names.txt", *facts])
    assert "\n" not in str(caught.value)


def _without(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


@pytest.mark.parametrize(
    ("spoil", "facts"),
    [
        (_without("images/c2.nii.gz"), ["labels/c2.nii.gz", "no image"]),
        (_without("labels/c2.nii.gz"), ["images/c2.nii.gz", "no label map"]),
        (lambda root: put(root, "images/c2.nii"), ["c2.nii", "same case 'c2'"]),
        (lambda root: put(root, "labels/c2_seg.nii.gz"), ["c2_seg.nii.gz"]),
        (lambda root: put(root, "masks/c2.nii.gz"), ["labels", "masks", "label maps"]),
        (lambda root: put(root, "scans/c2.nii.gz"), ["images", "scans"]),
        (lambda root: put(root, "labels/c2.nii.gz", np.full((4, 5, 6), 0.5, np.float32)), ["case c2", "0.5"]),
        (lambda root: (root / "labels" / "c2.nii.gz").write_bytes(b"x"), ["case c2", "c2.nii.gz"]),
        (
            lambda root: put(root, "sub-1/anat/sub-1_T1w.nii.gz") and put(root, "sub-1/anat/sub-1_dseg.nii.gz"),
            ["BIDS", "two folders"],
        ),
    ],
)
def test_a_folder_that_is_spoiled_is_one_line(
    tmp_path: Path, spoil: Callable[[Path], object], facts: list[str]
) -> None:
    two_folders(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ManifestError) as caught:
        describe_dataset(tmp_path)
    assert all(fact in str(caught.value) for fact in facts)
    assert "\n" not in str(caught.value)


def test_problems_are_collected_and_the_other_cases_described(tmp_path: Path) -> None:
    two_folders(tmp_path)
    (tmp_path / "images" / "c1.nii.gz").unlink()
    (tmp_path / "labels" / "c2.nii.gz").unlink()
    (tmp_path / "labels" / "c3.nii.gz").write_bytes(b"x")
    problems: list[str] = []
    manifest = describe_dataset(tmp_path, problems=problems)
    assert manifest.case_ids == ("c0", "c4", "c5")
    assert sorted(next(case for case in ("c1", "c2", "c3") if case in line) for line in problems) == ["c1", "c2", "c3"]


@pytest.mark.parametrize(
    ("write", "facts"),
    [
        (lambda root: None, "no layout"),
        (lambda root: put(root, "images/a.nii.gz") and put(root, "labels/b.nii.gz"), "no"),
        (lambda root: put(root, "images/a.nii.gz"), "no layout"),
        (lambda root: put(root, "images/a.nii.gz") and put(root, "labels/a.nii.gz", LABEL * 0), "nothing but 0"),
        (
            lambda root: (
                put(root, "images/a.nii.gz")
                and put(root, "labels/a.nii.gz", np.arange(20000, dtype=np.int32).reshape(20, 25, 40))
            ),
            "20000 different values",
        ),
    ],
)
def test_a_folder_without_a_data_set_is_one_line(tmp_path: Path, write: Callable[[Path], object], facts: str) -> None:
    write(tmp_path)
    with pytest.raises(ManifestError, match=facts) as caught:
        describe_dataset(tmp_path)
    assert "\n" not in str(caught.value)


def test_one_case_and_two_cases(tmp_path: Path) -> None:
    for count, folds in ((1, {}), (2, {0: 1, 1: 1})):
        for n in range(count):
            put(tmp_path, f"images/c{n}.nii.gz")
            put(tmp_path, f"labels/c{n}.nii.gz")
        manifest = describe_dataset(tmp_path)
        assert {number: len(ids) for number, ids in manifest.folds.items()} == folds
        assert fold_cases(manifest, "all", "training") == manifest.case_ids


def test_a_label_folder_of_another_case_folder(tmp_path: Path) -> None:
    case_folders(tmp_path)
    (tmp_path / "B_1" / "B_1_t1ce.nii.gz").unlink()
    with pytest.raises(ManifestError, match=r"case B_1.*channels"):
        describe_dataset(tmp_path)
    put(tmp_path, "B_2/B_2_mask.nii.gz")
    problems: list[str] = []
    assert describe_dataset(tmp_path, problems=problems).case_ids == ("B_0", "B_3", "B_4")
    assert len(problems) == 2


@pytest.mark.parametrize("rule", [r"^(c\d)", "visits.csv:person", "visits.tsv:person"])
def test_patients_by_expression_or_column(tmp_path: Path, rule: str) -> None:
    for person in range(3):
        for side in ("left", "right"):
            put(tmp_path / "data", f"images/c{person}{side}.nii.gz")
            put(tmp_path / "data", f"labels/c{person}{side}.nii.gz")
    if ":" in rule:
        delimiter = "\t" if "tsv" in rule else ","
        rows = [["scan", "age", "person"]]
        rows += [[f"c{n}{side}", "50", f"c{n}"] for n in range(3) for side in ("left", "right")]
        rule = f"{tmp_path}/{rule}"
        Path(rule.rpartition(":")[0]).write_text("\n".join(delimiter.join(row) for row in rows))
    manifest = describe_dataset(tmp_path / "data", patients=rule)
    assert {case.id: case.patient for case in manifest.cases} == {id: id[:2] for id in manifest.case_ids}
    assert [len(ids) for ids in manifest.folds.values()] == [2, 2, 2]
    with pytest.raises(ManifestError, match="c0left"):
        describe_dataset(tmp_path / "data", patients=r"^(x\d)")
    for wrong in ("(", "c", "visits.csv:nobody"):
        with pytest.raises(ManifestError):
            describe_dataset(tmp_path / "data", patients=wrong)


def test_families_of_participants(tmp_path: Path) -> None:
    bids(tmp_path)
    rows = ["participant_id\tfamily", *(f"sub-0{n}\tf{n // 2}" for n in range(5))]
    (tmp_path / "participants.tsv").write_text("\n".join(rows))
    manifest = describe_dataset(tmp_path, patients=f"{tmp_path}/participants.tsv:family")
    assert {case.id: case.patient for case in manifest.cases}["sub-03_ses-2"] == "f1"


def test_folds_of_nnunet_on_request(tmp_path: Path) -> None:
    root = tmp_path / "hippocampus"
    known = read_manifest("hippocampus")
    for case in known.case_ids:
        put(root, f"images/{case}.png", LABEL[:, :, 0])
        put(root, f"labels/{case}.png", LABEL[:, :, 0])
    manifest = describe_dataset(root, folds="nnunet")
    assert {n: sorted(ids) for n, ids in manifest.folds.items()} == {n: sorted(ids) for n, ids in known.folds.items()}
    by_patient = describe_dataset(root, patients=r"(\d+)$", folds="nnunet")
    assert by_patient.folds == manifest.folds
    with pytest.raises(ManifestError, match="folds"):
        describe_dataset(root, folds="random")  # type: ignore[arg-type]


def test_a_dataset_json_states_its_labels_itself(tmp_path: Path) -> None:
    put(tmp_path, "imagesTr/a_0000.nii.gz")
    put(tmp_path, "labelsTr/a.nii.gz")
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert describe_dataset(tmp_path).folder == tmp_path
    with pytest.raises(ManifestError, match=r"dataset\.json.*modality"):
        describe_dataset(tmp_path, modality="MR")


@pytest.mark.parametrize("inner", ["dicom", ""])
def test_dicom_series_are_no_training_images(tmp_path: Path, inner: str) -> None:
    for case in ("c1", "c2"):
        put(tmp_path, f"{case}/label.nii.gz")
        (tmp_path / case / inner).mkdir(exist_ok=True)
        for number in range(3):
            write_slice(tmp_path / case / inner / f"{number}.dcm", (0.0, 0.0, 2.5 * number))
    with pytest.raises(ManifestError, match=rf"{tmp_path / 'c1' / inner}: .*DICOM.*dcm2niix.*image\.nii\.gz"):
        describe_dataset(tmp_path)


def test_a_folder_is_no_image_of_a_manifest(tmp_path: Path) -> None:
    two_folders(tmp_path)
    manifest = describe_dataset(tmp_path)
    (tmp_path / "images" / "c0.nii.gz").unlink()
    (tmp_path / "images" / "c0.nii.gz").mkdir()
    with pytest.raises(ManifestError, match=r"case c0 has the folder .*c0\.nii\.gz.*DICOM"):
        case_files(manifest, tmp_path, fold="all", part="training", missing="error")
