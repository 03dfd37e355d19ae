"""Manifests: the shipped ones against their published counts, and one line for every rule a file can break."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from datasets.manifests import CONTENT, changed, load, write_manifest

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


def test_em_membrane_and_phantoms() -> None:
    em = read_manifest("em_membrane")
    assert em.spatial_dims == 2
    assert em.values_in_files == (0, 255)
    assert [len(em.folds[fold]) for fold in range(3)] == [6, 4, 20]
    assert em.case_ids[8] == "08"  # a text, not the number 8
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
    with pytest.raises(ManifestError, match="has no case 'z9'"):
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
    ("content", "message"),
    [
        ([1, 2], "a manifest is a mapping of keys, found list"),
        ("a: [1", "is not valid YAML"),
        ("name: a\nname: b\n", "key 'name' is given twice"),
        (changed(schema_version=2), "schema_version must be 1, found 2"),
        ({"name": "tiny"}, "schema_version must be 1, found None"),
        (changed(chanels=[]), "unknown key 'chanels'; did you mean channels?"),
        ({key: value for key, value in CONTENT.items() if key != "labels"}, "the manifest lacks labels"),
        (changed(name=5), "name must be text, found 5"),
        (changed(spatial_dims=4), "spatial_dims must be one of 2, 3, found 4"),
        (changed(channels=[]), "channels must be a list with at least one entry"),
        (changed(channels=[{"name": "t1"}]), r"channels\[0\] lacks modality"),
        (changed(channels=[{"name": "t1", "modality": "MR"}] * 2), "channels: name given twice: t1"),
        (changed(labels={"background": 0}), "the background and at least one more"),
        (changed(labels={"background": 0, "lesion": 0}), "labels: value given twice: 0"),
        (changed(labels={"organ": 1, "lesion": 2}), "no name has value 0"),
        (changed(labels={"background": 0, "lesion": -1}), "must be a name and a whole number"),
        (changed(labels={"background": 0, "lesion": 1.5}), "must be a name and a whole number"),
        (changed(ignore_label=1), "ignore_label 1 is also a value of labels"),
        (changed(ignore_label="x"), "ignore_label must be a whole number"),
        (changed(file_values={0: 0, 255: 7}), r"file_values lead to \[7\]"),
        (changed(file_values={"a": 0}), "file_values must map whole numbers"),
        (changed(cases=["a1", "a1"], folds={}, test_fold=None), "cases: id given twice: a1"),
        (changed(cases=[1, 2], folds={}, test_fold=None), "1 is not text; YAML reads 001 as a number"),
        (changed(cases=["../a"], folds={}, test_fold=None), "would leave its folder"),
        (changed(cases=[{"id": "a", "age": 3}], folds={}), "cases has the unknown key 'age'"),
        (changed(folds={0: ["e1"], 1: ["a1", "b1", "c1", "d1"], 2: ["a2"]}), "patient 'a' is in folds 1 and 2"),
        (changed(folds={0: ["e1"], 1: ["a1", "a2", "b1", "c1", "d1", "e1"]}), "folds: case given twice: e1"),
        (changed(folds={0: ["e1"], 1: ["zz"]}), "fold 1 names 'zz', which is not among the cases"),
        (changed(folds={0: ["e1"], 1: ["a1", "a2"]}), "folds: b1, c1, d1 in no fold"),
        (changed(folds={0: []}), r"none of them empty, found 0: \[\]; correct it or leave the fold out"),
        (changed(folds=["a1"]), r"folds must map numbers to lists of case ids, .* found \[.a1.\]"),
        (changed(test_fold=9), r"test_fold 9 is none of the folds \[0, 1, 2, 3\]"),
        (changed(files={"image": "i.nii", "label": "{case}.nii"}), "pattern 'i.nii' must hold {case}"),
        (changed(files={"image": "{case}{x}.nii", "label": "{case}.nii"}), "must hold {case} and no other braces"),
        (changed(files={"image": "../{case}.nii", "label": "{case}.nii"}), "must stay below"),
        (changed(files={"image": ["{case}.nii", "b{case}.nii"], "label": "{case}.nii"}), "2 patterns for 1 channels"),
        (changed(source={"url": "https://example.org/a.tar"}), "a url needs the md5"),
        (changed(source={"mirror": "x"}), "source has the unknown key 'mirror'"),
    ],
)
def test_one_line_for_each_broken_rule(tmp_path: Path, content: Any, message: str) -> None:
    path = write_manifest(tmp_path, content)
    with pytest.raises(ManifestError, match=message) as caught:
        read_manifest(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_the_example_of_the_readme_is_valid(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "data_manifests" / "README.md").read_text(encoding="utf-8")
    manifest = read_manifest(write_manifest(tmp_path, text.split("```yaml\n")[1].split("```")[0]))
    assert manifest.values_in_files == (0, 100, 200)
    assert [case.patient for case in manifest.cases] == ["liver_001", "liver_002", "liver_002"]


def test_names_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    with pytest.raises(ManifestError, match="did you mean hippocampus"):
        read_manifest("hipocampus")
    with pytest.raises(ManifestError, match="no such manifest file; shipped ones are em_membrane"):
        read_manifest(tmp_path / "absent.yaml")
    with pytest.raises(ManifestError, match=r"pyproject\.toml: no manifest by its name; manifests end in \.yaml"):
        read_manifest("pyproject.toml")
    (tmp_path / "binary.yaml").write_bytes(hashlib.sha256(b"x").digest() * 10)
    with pytest.raises(ManifestError, match="is not valid YAML"):
        read_manifest(tmp_path / "binary.yaml")
