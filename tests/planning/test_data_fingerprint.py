"""Measurements of a data set, by closed forms and by nnU-Net's own fingerprint."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from medseg.datasets import read_manifest
from medseg.planning import measure_dataset


def write(root: Path, case: str, image: np.ndarray, label: np.ndarray, affine: np.ndarray) -> None:
    for folder, array in (("images", image), ("labels", label)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, affine), root / folder / f"{case}.nii.gz")


def manifest(root: Path, cases: list[str], **values: object):
    content = {
        "schema_version": 1, "name": "measured", "spatial_dims": 3, "channels": [{"name": "ct", "modality": "CT"}],
        "labels": {"background": 0, "organ": 3}, "ignore_label": 9,
        "files": {"image": "images/{case}.nii.gz", "label": "labels/{case}.nii.gz"}, "cases": cases,
    }  # fmt: skip
    root.mkdir(parents=True, exist_ok=True)
    (root / "manifest.yaml").write_text(yaml.safe_dump(content | values))
    return read_manifest(root / "manifest.yaml")


def test_axes_counts_and_intensities(tmp_path):
    """A volume stored as superior, left, anterior: sizes and spacings are reordered to right, anterior, superior."""
    shape = (6, 10, 8)
    affine = np.array([[0, -2.0, 0, 0], [0, 0, 3.0, 0], [5.0, 0, 0, 0], [0, 0, 0, 1]])
    image, label = np.full(shape, -1000, np.int16), np.zeros(shape, np.uint8)
    label[2:4, 2:6, 3:5] = 3
    label[0, 0, 0] = 9
    image[label == 3] = np.arange(16) * 10
    image[5] = 0
    write(tmp_path, "a", image, label, affine)
    found = measure_dataset(manifest(tmp_path, ["a"]), tmp_path)
    assert found.shapes == [(10, 8, 6)]
    assert found.spacings == [(2.0, 3.0, 5.0)]
    assert found.nonzero_shapes == [(10, 8, 5)]
    assert found.labels["organ"].fraction == pytest.approx(16 / 480)
    assert (found.labels["organ"].value, found.labels["organ"].cases) == (3, 1)
    levels = found.intensities[0]
    values = np.arange(16) * 10
    assert (levels.mean, levels.std) == (pytest.approx(values.mean()), pytest.approx(values.std()))
    assert levels.lower == pytest.approx(np.percentile(values, 0.5))
    assert found.air_below == -500


def test_air_is_not_used_where_labels_are_dark(tmp_path):
    shape = (8, 8, 8)
    image, label = np.full(shape, -1000, np.int16), np.zeros(shape, np.uint8)
    label[2:6] = 3
    image[2:6] = -700  # a lung
    write(tmp_path, "a", image, label, np.eye(4))
    assert measure_dataset(manifest(tmp_path, ["a"]), tmp_path).air_below == -900
    image[2:6] = -1000
    write(tmp_path, "a", image, label, np.eye(4))
    assert measure_dataset(manifest(tmp_path, ["a"]), tmp_path).air_below is None


def test_crowds_of_pieces_are_found(tmp_path):
    label = np.zeros((48, 48, 8), np.uint8)
    for i in range(0, 48, 8):
        for j in range(0, 48, 8):
            label[i : i + 6, j : j + 6] = 3
    write(tmp_path, "a", label.astype(np.int16), label, np.eye(4))
    organ = measure_dataset(manifest(tmp_path, ["a"]), tmp_path).labels["organ"]
    assert organ.pieces == 36
    assert organ.crowding > 0.9
    label[:] = 0
    label[4:20, 4:20] = label[30:40, 30:40] = 3
    write(tmp_path, "a", label.astype(np.int16), label, np.eye(4))
    organ = measure_dataset(manifest(tmp_path, ["a"]), tmp_path).labels["organ"]
    assert organ.pieces == 2
    assert organ.crowding < 0.1


@pytest.mark.data
@pytest.mark.skipif(find_spec("nnunetv2") is None, reason="nnU-Net is not installed; see PEERS in the Makefile")
def test_hippocampus_cases_equal_nnunets_fingerprint(shared_data):
    """nnU-Net crops to non-zero voxels, reads slices first, and samples intensities with replacement."""
    from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    root, cases = shared_data / "hippocampus", ["hippocampus_003", "hippocampus_025"]
    found = measure_dataset(read_manifest("hippocampus"), root, cases)
    samples = []
    for number, case in enumerate(cases):
        shape, spacing, intensities, _, _ = DatasetFingerprintExtractor.analyze_case(
            [str(root / "images" / f"{case}.nii.gz")], str(root / "labels" / f"{case}.nii.gz"), SimpleITKIO, 200_000
        )
        assert found.nonzero_shapes[number] == tuple(shape[::-1])
        assert found.spacings[number] == pytest.approx(spacing[::-1])
        samples.append(intensities[0])
        levels = measure_dataset(read_manifest("hippocampus"), root, [case]).intensities[0]
        theirs = np.percentile(intensities[0], (0.5, 50, 99.5))
        assert (levels.lower, levels.median, levels.upper) == pytest.approx(tuple(theirs), rel=0.03)
        assert levels.mean == pytest.approx(np.mean(intensities[0]), rel=0.01)
