"""Files of a case that do not fit together are refused before they are trained on."""

import dataclasses
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml
from monai.data import CacheDataset
from monai.transforms import Compose, LoadImaged

from medseg.datasets import case_files, generate_phantoms, read_manifest
from medseg.errors import ManifestError, PlanError
from medseg.training import CheckCased


@pytest.fixture
def manifest(tmp_path):
    generate_phantoms(tmp_path, num_cases=2, seed=1, shape=(12, 12, 8))
    raw = yaml.safe_load(read_manifest("phantom_cells").path.read_text(encoding="utf-8"))
    raw |= {"cases": ["phantom_000", "phantom_001"], "folds": {0: ["phantom_000"], 1: ["phantom_001"]}}
    (tmp_path / "manifest.yaml").write_text(yaml.safe_dump({**raw, "test_fold": None}))
    return read_manifest(tmp_path / "manifest.yaml")


def edit(path, change=lambda array: array, shift_mm=0.0):
    image = nib.load(path)
    affine = image.affine.copy()
    affine[0, 3] += shift_mm
    nib.save(nib.Nifti1Image(change(np.asanyarray(image.dataobj).copy()), affine), path)


def test_usable_cases_pass_unchanged_and_are_checked_once_if_they_are_cached(manifest, tmp_path):
    cases = case_files(manifest, tmp_path, "all")
    check = CheckCased(manifest, [0, 1, 2])
    assert [check(case) for case in cases] == cases
    data = CacheDataset(cases, Compose([check, LoadImaged("image")]), num_workers=0, progress=False)
    edit(cases[0]["label"], lambda array: array + 5)
    assert data[0]["image"].shape == (12, 12, 8)  # from the cache


def add_nan(array):
    array = array.astype(np.float32)
    array[1, 1, 1] = np.nan
    return array


@pytest.mark.parametrize(
    ("key", "change", "shift_mm", "fact"),
    [
        (
            "label",
            lambda array: array * 7,
            0.0,
            r"label.*14 \(\d+ voxels\)",
        ),
        ("label", lambda array: array[:-2], 0.0, r"shape \(10, 12, 8\) differs from \(12, 12, 8\) of .*images"),
        ("label", lambda array: array, 5.0, r"its corners lie up to 5 mm from those of"),
        ("instances", lambda array: array, 5.0, r"instances.*its corners lie up to 5 mm"),
        (
            "image",
            lambda array: np.stack([array] * 2, -1),
            0.0,
            r"images.*\(12, 12, 8, 2\) \(4D\) where 3D is expected",
        ),
        ("image", add_nan, 0.0, r"1 of 1152 voxels are NaN or infinite; replace them first"),
    ],
)
def test_an_unusable_case_is_named_with_its_problem(manifest, tmp_path, key, change, shift_mm, fact):
    case = case_files(manifest, tmp_path, "all")[1]
    edit(case[key], change, shift_mm)
    with pytest.raises(ManifestError, match=rf"^case phantom_001: .*{fact}"):
        CheckCased(manifest)(case)


def test_a_truncated_file_is_named(manifest, tmp_path):
    case = case_files(manifest, tmp_path, "all")[0]
    with Path(case["image"]).open("r+b") as stream:
        stream.truncate(200)
    with pytest.raises(ManifestError, match=r"case phantom_000: .*images.*phantom_000"):
        CheckCased(manifest)(case)


def test_a_label_that_the_plan_lacks_is_refused_before_a_case_is_read(manifest):
    changed = dataclasses.replace(manifest, labels={**manifest.labels, "tumour": 3})
    with pytest.raises(PlanError, match=r"tumour \(3\) of phantom_cells"):
        CheckCased(changed, [0, 1, 2])
    CheckCased(changed)  # where label maps are remapped


def test_volumes_can_be_allowed_for_a_2d_network(manifest, tmp_path):
    case = case_files(manifest, tmp_path, "all")[0]
    of_slices = dataclasses.replace(manifest, spatial_dims=2)
    with pytest.raises(ManifestError, match="where 2D is expected"):
        CheckCased(of_slices)(case)
    assert CheckCased(of_slices, spatial_dims=3)(case) == case
