"""Checks of a case: each problem is one line that names the case, the file and the values."""

from pathlib import Path

import numpy as np
import pytest
from datasets.manifests import AFFINE, load, write_case

from medseg.datasets import case_problems, check_case
from medseg.errors import ManifestError


def fails(root: Path, *facts: str, **changes: object) -> None:
    with pytest.raises(ManifestError) as caught:
        check_case(load(root, **changes), root, "b1")
    assert str(caught.value).startswith(f"case b1: {root}")
    assert "\n" not in str(caught.value)
    assert [fact for fact in facts if fact not in str(caught.value)] == []


def test_a_good_case(tmp_path: Path) -> None:
    write_case(tmp_path, "b1")
    check_case(load(tmp_path), tmp_path, "b1")


def test_shapes_differ(tmp_path: Path) -> None:
    write_case(tmp_path, "b1", label=np.zeros((4, 5, 7), np.uint8))
    fails(tmp_path, "labels/b1", "images/b1", "(4, 5, 7)", "(4, 5, 6)")


@pytest.mark.parametrize(("shift_mm", "is_allowed"), [(0.49, True), (0.51, False)])
def test_half_a_voxel_is_the_limit(tmp_path: Path, shift_mm: float, is_allowed: bool) -> None:
    affine = AFFINE.copy()
    affine[0, 3] += shift_mm  # the smallest spacing is 1 mm
    write_case(tmp_path, "b1", label_affine=affine)
    if is_allowed:
        check_case(load(tmp_path), tmp_path, "b1")
    else:
        fails(tmp_path, "images/b1", "0.51 mm", "0.5 mm")


def test_flipped_label_map(tmp_path: Path) -> None:
    write_case(tmp_path, "b1", label_affine=np.diag([-1.0, 2, 3, 1]))
    fails(tmp_path, "7 mm")  # the far corner, x = 3.5 mm, lands at −3.5 mm


def test_label_values_outside_the_manifest_are_all_named(tmp_path: Path) -> None:
    label = np.zeros((4, 5, 6), np.uint8)
    label[0, 0, :3] = (7, 9, 9)
    write_case(tmp_path, "b1", label=label)
    fails(tmp_path, "7, 9 (3 voxels)", "0, 1")
    check_case(load(tmp_path, labels={"background": 0, "a": 7, "b": 9}), tmp_path, "b1")
    check_case(load(tmp_path, ignore_label=9, labels={"background": 0, "a": 7}), tmp_path, "b1")
    check_case(load(tmp_path, file_values={0: 0, 7: 1, 9: 1}), tmp_path, "b1")


def test_label_maps_with_fractions(tmp_path: Path) -> None:
    write_case(tmp_path, "b1", label=np.full((4, 5, 6), 0.5, np.float32))
    fails(tmp_path, "0.5")


def test_absent_damaged_and_wrong_dimension(tmp_path: Path) -> None:
    fails(tmp_path, "b1.nii.gz")
    write_case(tmp_path, "b1")
    image = tmp_path / "images/b1.nii.gz"
    image.write_bytes(image.read_bytes()[:-40])
    fails(tmp_path, "truncated")
    write_case(tmp_path, "b1", image=np.full((4, 5, 6), np.nan, np.float32))
    fails(tmp_path, "120 of 120")
    write_case(tmp_path, "b1")
    fails(tmp_path, "(4, 5, 6)", "2D", spatial_dims=2)


def test_every_problem_is_listed(tmp_path: Path) -> None:
    write_case(tmp_path, "b1", image=np.full((4, 5, 6), np.inf, np.float32), label=np.full((4, 5, 6), 3, np.uint8))
    manifest = load(tmp_path)
    problems = case_problems(manifest, manifest.paths(tmp_path, "b1"), "b1")
    assert len(problems) == 2
    assert "infinite" in problems[0]
    assert "3 (120 voxels)" in problems[1]
