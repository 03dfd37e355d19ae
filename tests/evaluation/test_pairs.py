from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.datasets import FilePatterns, Manifest, read_manifest
from medseg.errors import EvaluationError
from medseg.evaluation import evaluate
from medseg.evaluation.pairs import structures_of

MANIFEST = """
schema_version: 1
name: cells
spatial_dims: 3
channels: [{name: light, modality: MR}]
labels: {background: 0, cell: 1, nucleus: 2}
ignore_label: 9
file_values: {0: 0, 100: 1, 255: 2, 50: 9}
files: {image: "images/{case}.nii.gz", label: "labels/{case}_seg.nii.gz"}
cases:
  - {id: a1, patient: ann}
  - {id: a2, patient: ann}
  - {id: b1, patient: bob}
"""


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    (tmp_path / "cells.yaml").write_text(MANIFEST)
    return read_manifest(tmp_path / "cells.yaml")


def save(path: Path, label_map: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    nib.save(nib.Nifti1Image(label_map.astype(np.uint8), np.eye(4)), path)


def cells() -> np.ndarray:
    label_map = np.zeros((10, 9, 8), np.uint8)
    label_map[1:6, 1:6, 1:6] = 1
    label_map[2:4, 2:4, 2:4] = 2
    return label_map


def as_stored(label_map: np.ndarray) -> np.ndarray:
    return np.array([0, 100, 255, 0, 0, 0, 0, 0, 0, 50], np.uint8)[label_map]


@pytest.mark.parametrize("folder", ["root", "root/labels"])
def test_references_are_found_and_read_as_the_manifest_says(manifest: Manifest, tmp_path: Path, folder: str) -> None:
    """Files named <case>_seg hold 100 and 255; predictions named by case hold 1 and 2."""
    for case in manifest.case_ids:
        save(tmp_path / "root" / "labels" / f"{case}_seg.nii.gz", as_stored(cells()))
        save(tmp_path / "predictions" / f"{case}.nii.gz", cells())
    evaluation = evaluate(tmp_path / "predictions", tmp_path / folder, labels=manifest)
    assert evaluation.summary["num_cases"] == 3
    assert evaluation.summary["num_patients"] == 2
    assert list(evaluation.summary["labels"]) == ["cell", "nucleus"]
    assert evaluation.mean() == 1.0
    by_path = evaluate(tmp_path / "predictions", tmp_path / folder, labels=tmp_path / "cells.yaml")
    assert by_path.summary == evaluation.summary


def test_ignored_voxels_do_not_count_on_either_side(manifest: Manifest, tmp_path: Path) -> None:
    reference, prediction = cells(), cells()
    reference[8, 8, :] = 9
    prediction[8, 8, :] = 2
    save(tmp_path / "labels" / "a1_seg.nii.gz", as_stored(reference))
    save(tmp_path / "predictions" / "a1.nii.gz", prediction)
    evaluation = evaluate(tmp_path / "predictions", tmp_path, labels=manifest)
    assert evaluation.mean() == 1.0
    assert evaluation.mean("hd95_mm") == 0.0


def test_values_unknown_to_the_manifest_are_listed(manifest: Manifest, tmp_path: Path) -> None:
    save(tmp_path / "labels" / "a1_seg.nii.gz", as_stored(cells()) + np.uint8(1))
    save(tmp_path / "predictions" / "a1.nii.gz", cells() * 3)
    with pytest.raises(EvaluationError) as caught:
        evaluate(tmp_path / "predictions", tmp_path, labels=manifest)
    text = str(caught.value)
    for fact in ("a1", "3 (117 voxels), 6 (8 voxels)", "101 (117 voxels)", "[0, 1, 2, 9]"):
        assert fact in text
    assert "256" not in text


def test_either_side_may_hold_labels_or_file_values(manifest: Manifest) -> None:
    structures = structures_of(manifest)
    for role in ("prediction", "reference"):
        for label_map in (cells(), as_stored(cells())):
            converted, unknown = structures.to_labels(label_map, role)
            assert not unknown
            np.testing.assert_array_equal(converted, cells())


def test_a_swapped_file_value_is_swapped_in_references_only(manifest: Manifest) -> None:
    """If both readings are possible, a reference holds file values and a prediction holds label values."""
    structures = structures_of(replace(manifest, file_values={0: 0, 1: 2, 2: 1}))
    reference, _ = structures.to_labels(cells(), "reference")
    prediction, _ = structures.to_labels(cells(), "prediction")
    np.testing.assert_array_equal(reference == 1, cells() == 2)
    np.testing.assert_array_equal(prediction, cells())


def test_folders_per_case_with_one_file_name_are_found_below_the_root(manifest: Manifest, tmp_path: Path) -> None:
    """Files of one name must not be mistaken for each other as if they lay in one folder."""
    manifest = replace(manifest, files=FilePatterns(("{case}/image.nii.gz",), "{case}/seg.nii.gz"))
    for case in ("a1", "b1"):
        save(tmp_path / "root" / case / "seg.nii.gz", as_stored(cells()))
        save(tmp_path / "predictions" / f"{case}.nii.gz", cells())
    assert evaluate(tmp_path / "predictions", tmp_path / "root", labels=manifest).summary["num_cases"] == 2


def test_labels_without_a_structure_are_refused() -> None:
    with pytest.raises(EvaluationError, match="background"):
        structures_of({"background": 0})
