"""Shipped manifests against published counts, and one-line errors for every rule that a manifest can break."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from datasets.manifests import CONTENT, changed, load, splits, write_manifest

from medseg.datasets import list_manifests, manifest_folder, read_manifest
from medseg.errors import ManifestError

SHARED = Path(os.environ.get("MEDSEG_SHARED_DATA", Path(__file__).resolve().parents[2].parent / "shared" / "data"))


def test_shipped_manifests_are_readable_and_named_as_their_files() -> None:
    assert list_manifests() == ["em_membrane", "hippocampus", "phantom_cells"]
    for name in list_manifests():
        assert read_manifest(name) == read_manifest(manifest_folder() / f"{name}.yaml")
        assert read_manifest(name).name == name


def test_hippocampus_counts_folds_and_source() -> None:
    manifest = read_manifest("hippocampus")
    assert len(manifest.cases) == 260
    assert {number: len(ids) for number, ids in manifest.folds.items()} == dict.fromkeys(range(5), 52)
    assert manifest.test_fold == 0
    assert manifest.labels == {"background": 0, "anterior": 1, "posterior": 2}
    from monai.apps import DecathlonDataset

    assert manifest.source.url == DecathlonDataset.resource["Task04_Hippocampus"]
    assert manifest.source.md5 == DecathlonDataset.md5["Task04_Hippocampus"]


def test_hippocampus_folds_are_a_shuffled_k_fold_with_seed_12345() -> None:
    import numpy as np

    manifest = read_manifest("hippocampus")
    order = np.arange(260)
    np.random.RandomState(12345).shuffle(order)
    ids = np.array(sorted(manifest.case_ids))
    for fold in range(5):
        assert set(manifest.folds[fold]) == set(ids[order[fold * 52 : (fold + 1) * 52]])


@pytest.mark.data
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no shared data at {SHARED}")
def test_hippocampus_folds_equal_the_shared_record() -> None:
    folds = json.loads((SHARED / "hippocampus" / "folds.json").read_text())
    manifest = read_manifest("hippocampus")
    assert {f"fold_{number}": sorted(ids) for number, ids in manifest.folds.items()} == {
        name: sorted(ids) for name, ids in folds.items()
    }


def test_hippocampus_cases_of_one_head_are_one_patient() -> None:
    manifest = read_manifest("hippocampus")
    patients = {case.id: case.patient for case in manifest.cases}
    numbers = {int(case_id[-3:]): patient for case_id, patient in patients.items()}
    for number, patient in numbers.items():
        side = number + 1 if number % 2 else number - 1
        assert [n for n, other in numbers.items() if other == patient] == sorted({number, side} & set(numbers))
    assert len(set(patients.values())) == 170  # 260 cases, 90 of the heads with both sides


def test_folds_by_patient_keep_heads_together_and_away_from_the_test_set() -> None:
    whole, manifest = read_manifest("hippocampus"), read_manifest("hippocampus", folds="by_patient")
    fold_of = {case_id: fold for fold, ids in manifest.folds.items() for case_id in ids}
    assert manifest.folds[0] == whole.folds[0]
    by_patient: dict[str, set[int]] = {}
    for case in manifest.cases:
        by_patient.setdefault(case.patient, set()).add(fold_of[case.id])
    assert all(len(folds) == 1 for folds in by_patient.values())
    tested = {case.patient for case in whole.cases if case.id in whole.folds[0]}
    left_out = {case.id for case in whole.cases} - set(manifest.case_ids)
    assert left_out == {c.id for c in whole.cases if c.patient in tested and c.id not in whole.folds[0]}
    assert len(left_out) == 36
    # as near to nnU-Net's folds as possible: a head moves only if its sides are in two of them
    for number, ids in manifest.folds.items():
        for case_id in ids:
            if case_id not in whole.folds[number]:
                patient = next(case.patient for case in whole.cases if case.id == case_id)
                assert any(case.patient == patient and case.id in whole.folds[number] for case in whole.cases)
    assert max(map(len, list(manifest.folds.values())[1:])) - min(map(len, manifest.folds.values())) <= 3


def test_em_slices_are_of_one_animal() -> None:
    assert len({case.patient for case in read_manifest("em_membrane").cases}) == 1


def test_fold_sets(tmp_path: Path) -> None:
    own = {0: ["e1"], 1: ["a1", "a2"], 2: ["b1", "c1"], 3: ["d1"]}
    content = changed(folds=own, fold_sets={"small": {0: ["e1"], 5: ["a1", "a2"]}})
    path = write_manifest(tmp_path, content)
    small = read_manifest(path, folds="small")
    assert small.folds == {0: ("e1",), 5: ("a1", "a2")}
    assert small.case_ids == ("a1", "a2", "e1")
    assert read_manifest(path).folds[2] == ("b1", "c1")
    with pytest.raises(ManifestError, match=r"smal'; did you mean small"):
        read_manifest(path, folds="smal")


def test_em_membrane_and_phantoms() -> None:
    em = read_manifest("em_membrane")
    assert em.spatial_dims == 2
    assert em.values_in_files == (0, 255)
    assert [len(em.folds[fold]) for fold in range(3)] == [6, 4, 20]
    assert em.case_ids[8] == "08"  # text, not the number 8
    phantoms = read_manifest("phantom_cells")
    assert phantoms.source.generator == "phantom_cells"
    assert phantoms.files.instances is not None


def test_reads_every_field(tmp_path: Path) -> None:
    manifest = load(tmp_path, ignore_label=9)
    assert manifest.channels[0].modality == "MR"
    assert [case.patient for case in manifest.cases] == ["a", "a", "b1", "c1", "d1", "e1"]
    assert manifest.values_in_files == (0, 1, 9)
    assert manifest.citations == ("Nobody 2020",)
    assert manifest.paths("r", "b1") == {"image": [Path("r/images/b1.nii.gz")], "label": [Path("r/labels/b1.nii.gz")]}
    with pytest.raises(ManifestError, match="'z9'"):
        manifest.paths("r", "z9")


def test_several_channels_and_instances(tmp_path: Path) -> None:
    manifest = load(
        tmp_path,
        channels=[{"name": "t1", "modality": "MR"}, {"name": "t2", "modality": "MR"}],
        files={
            "image": ["i/{case}_0000.nii", "i/{case}_0001.nii"],
            "label": "l/{case}.nii",
            "instances": "n/{case}.nii",
        },
        source={},
    )
    files = manifest.paths("r", "b1")
    assert files["image"] == [Path("r/i/b1_0000.nii"), Path("r/i/b1_0001.nii")]
    assert files["instances"] == [Path("r/n/b1.nii")]


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        ([1, 2], ["list"]),
        ("a: [1", ["YAML"]),
        ("name: a\nname: b\n", ["'name'", "twice"]),
        (changed(schema_version=2), ["schema_version", "2", "1"]),
        ({"name": "tiny"}, ["schema_version", "None"]),
        (changed(chanels=[]), ["'chanels'", "did you mean channels?"]),
        ({key: value for key, value in CONTENT.items() if key != "labels"}, ["labels"]),
        (changed(name=5), ["name", "5"]),
        (changed(spatial_dims=4), ["spatial_dims", "4"]),
        (changed(channels=[]), ["channels", "[]"]),
        (changed(channels=[{"name": "t1"}]), ["channels[0]", "modality"]),
        (changed(labels={"background": 0}), ["labels", "{'background': 0}"]),
        (changed(labels={"background": 0, "lesion": 0}), ["labels: value", "twice", "0"]),
        (changed(labels={"organ": 1, "lesion": 2}), ["background: 0"]),
        (changed(labels={"background": 0, "lesion": -1}), ["'lesion': -1"]),
        (changed(labels={"background": 0, "lesion": 1.5}), ["'lesion': 1.5"]),
        (changed(ignore_label=1), ["ignore_label 1"]),
        (changed(ignore_label="x"), ["ignore_label", "'x'"]),
        (changed(file_values={0: 0, 255: 7}), ["file_values", "[7]"]),
        (changed(file_values={"a": 0}), ["file_values", "'a'"]),
        (changed(cases=["a1", "a1"], folds={}, test_fold=None), ["cases: id", "twice", "a1"]),
        (changed(cases=[1, 2], folds={}, test_fold=None), ["cases: 1", "quotes"]),
        (changed(cases=["../a"], folds={}, test_fold=None), ["'../a'"]),
        (changed(cases=[{"id": "a", "age": 3}], folds={}), ["cases", "'age'"]),
        (changed(folds={0: ["e1"], 1: ["a1", "b1", "c1", "d1"], 2: ["a2"]}), ["patient 'a'", "1 and 2"]),
        (changed(folds={0: ["e1"], 1: ["a1", "a2", "b1", "c1", "d1", "e1"]}), ["folds: case", "twice", "e1"]),
        (changed(patients_cross_folds="yes"), ["patients_cross_folds", "'yes'"]),
        (changed(fold_sets=["a1"]), ["fold_sets", "['a1']"]),
        (changed(fold_sets={"x": {1: ["zz"]}}), ["fold_sets: x", "'zz'"]),
        (changed(fold_sets={"x": {0: ["a1"], 1: ["a2"]}}), ["fold_sets: x", "patient 'a'", "0 and 1"]),
        (changed(fold_sets={"x": {1: ["a1"]}}), ["fold_sets: x", "test fold 0"]),
        (changed(folds={0: ["e1"], 1: ["zz"]}), ["fold 1", "'zz'"]),
        (changed(folds={0: ["e1"], 1: ["a1", "a2"]}), ["b1, c1, d1", "no fold"]),
        (changed(folds={0: []}), ["folds", "0: []"]),
        (changed(folds=["a1"]), ["folds", "['a1']"]),
        (changed(test_fold=9), ["test_fold 9", "[0, 1, 2, 3]"]),
        (changed(splits={0: {"training": ["b1"], "validation": ["c1"]}}), ["folds", "splits"]),
        (splits(["b1"], ["zz"]), ["split 0", "'zz'"]),
        (splits([], ["b1"]), ["split 0", "training"]),
        (splits(["a1"], ["a2"]), ["split 0", "patient a"]),
        (splits(["b1"], ["b1"]), ["split 0", "twice", "b1"]),
        (splits("b1", ["c1"]), ["split 0", "training", "'b1'"]),
        (changed(folds={}, test_fold=None, splits={"first": {}}), ["splits", "'first'"]),
        (changed(files={"image": "i.nii", "label": "{case}.nii"}), ["'i.nii'", "{case}"]),
        (changed(files={"image": "{case}{x}.nii", "label": "{case}.nii"}), ["'{case}{x}.nii'", "braces"]),
        (changed(files={"image": "../{case}.nii", "label": "{case}.nii"}), ["'../{case}.nii'"]),
        (changed(files={"image": ["{case}.nii", "b{case}.nii"], "label": "{case}.nii"}), ["2 patterns", "1 channels"]),
        (changed(source={"url": "https://example.org/a.tar"}), ["source", "md5"]),
        (changed(source={"mirror": "x"}), ["source", "'mirror'"]),
    ],
)
def test_a_broken_rule_is_one_line_with_the_file_and_the_value(tmp_path: Path, content: Any, facts: list[str]) -> None:
    path = write_manifest(tmp_path, content)
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert [fact for fact in facts if fact not in str(caught.value)] == []


def test_repeated_channel_names_get_numbers(tmp_path: Path) -> None:
    manifest = load(
        tmp_path,
        channels=[{"name": "rgb", "modality": "RGB"}] * 3,
        files={"image": [f"{{case}}_000{c}.png" for c in range(3)], "label": "{case}.png"},
        source={},
    )
    assert [channel.name for channel in manifest.channels] == ["rgb"] * 3
    assert manifest.channel_names == ("rgb", "rgb 2", "rgb 3")


def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, changed())
    plain = read_manifest(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_manifest(path) == plain


def test_the_example_of_the_readme_is_valid(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "data_manifests" / "README.md").read_text(encoding="utf-8")
    manifest = read_manifest(write_manifest(tmp_path, text.split("```yaml\n")[1].split("```")[0]))
    assert manifest.values_in_files == (0, 100, 200)
    assert [case.patient for case in manifest.cases] == ["liver_001", "liver_002", "liver_002"]


def test_names_and_files_that_do_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    with pytest.raises(ManifestError, match="did you mean hippocampus"):
        read_manifest("hipocampus")
    with pytest.raises(ManifestError, match=r"absent\.yaml.*em_membrane"):
        read_manifest(tmp_path / "absent.yaml")
    with pytest.raises(ManifestError, match=r"pyproject\.toml.*\.yaml"):
        read_manifest("pyproject.toml")
    (tmp_path / "binary.yaml").write_bytes(hashlib.sha256(b"x").digest() * 10)
    with pytest.raises(ManifestError, match=r"binary\.yaml"):
        read_manifest(tmp_path / "binary.yaml")


def test_alias_bombs_and_deep_nesting_are_one_line(tmp_path):
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
    for name, text in {
        "a.yaml": bomb,
        "b.yaml": "[" * 20_000,
        "c.json": "[" * 20_000,
        "d.yaml": "#" * 2_000_000,
    }.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(ManifestError, match=name):
            read_manifest(tmp_path / name)
