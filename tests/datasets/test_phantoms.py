"""Phantoms: touching cells in one piece, geometry and reproducibility."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from medseg.datasets import PhantomCase, generate_phantoms, phantom_case
from medseg.datasets.phantoms import LABELS
from medseg.volumes import read_label_map, read_volume


@pytest.fixture(scope="module")
def cases() -> list[PhantomCase]:
    return [phantom_case(number, seed=5) for number in range(4)]


def touching_pairs(instances: np.ndarray) -> set[tuple[int, int]]:
    pairs: set[tuple[int, int]] = set()
    for axis in range(3):
        swapped = np.moveaxis(instances, axis, 0)
        one, two = swapped[:-1].ravel(), swapped[1:].ravel()
        border = (one != two) & (one > 0) & (two > 0)
        pairs |= {(int(min(pair)), int(max(pair))) for pair in zip(one[border], two[border], strict=True)}
    return pairs


def test_instances_are_whole_cells_of_one_class(cases: list[PhantomCase]) -> None:
    for case in cases:
        np.testing.assert_array_equal(case.label > 0, case.instances > 0)
        numbers = np.unique(case.instances)
        np.testing.assert_array_equal(numbers, np.arange(len(numbers)))
        for number in numbers[1:]:
            mask = case.instances == number
            assert ndimage.label(mask)[1] == 1
            assert len(np.unique(case.label[mask])) == 1


def test_cells_touch_and_both_classes_are_common(cases: list[PhantomCase]) -> None:
    for case in cases:
        num_cells = int(case.instances.max())
        in_contact = {number for pair in touching_pairs(case.instances) for number in pair}
        assert num_cells >= 20
        assert len(in_contact) >= 0.6 * num_cells
        shares = np.bincount(case.label.ravel(), minlength=3) / case.label.size
        assert 0.5 < shares[0] < 0.9
        assert shares[1:].min() > 0.04


def test_elongated_cells_are_longer_than_round_ones(cases: list[PhantomCase]) -> None:
    """Compare the ratio of the longest to the middle principal extent, in mm, of cells that the border does not cut."""
    ratios: dict[int, list[float]] = {1: [], 2: []}
    for case in cases:
        inner = case.instances[1:-1, 1:-1, 1:-1]
        for number in range(1, int(case.instances.max()) + 1):
            mask = case.instances == number
            if np.count_nonzero(inner == number) == np.count_nonzero(mask):
                points = np.argwhere(mask) * case.grid.spacing
                spread = np.sqrt(np.linalg.eigvalsh(np.cov(points.T)))
                ratios[int(case.label[mask][0])].append(float(spread[2] / spread[1]))
    assert np.median(ratios[LABELS["elongated"]]) > 1.5 > 1.3 > np.median(ratios[LABELS["round"]])


def test_brightness_alone_does_not_separate_the_classes(cases: list[PhantomCase]) -> None:
    """The best threshold between the classes is wrong for more than a tenth of the voxels; chance is wrong for half."""
    errors = []
    for case in cases:
        one, two = case.image[case.label == 1], case.image[case.label == 2]
        thresholds = np.linspace(one.min(), one.max(), 200)
        errors.append(min((np.mean(one < cut) + np.mean(two >= cut)) / 2 for cut in thresholds))
    assert 0.1 < np.mean(errors) < 0.45


def test_geometry_differs_between_cases(cases: list[PhantomCase]) -> None:
    assert len({case.grid.spacing for case in cases}) == 4
    assert len({case.grid.orientation for case in cases}) > 1
    for case in cases:
        assert case.grid.is_oblique
        assert case.grid.spacing[2] > 1.3 * case.grid.spacing[0]


def test_images_contain_noise(cases: list[PhantomCase]) -> None:
    for case in cases:
        background = case.image[ndimage.binary_erosion(case.label == 0, iterations=3)].astype(float)
        assert background.std() > 20  # noise
        assert (case.image > 0).mean() > 0.99  # not clipped


def test_files_are_reproducible_case_by_case(tmp_path: Path) -> None:
    size = (24, 24, 12)
    assert generate_phantoms(tmp_path / "a", num_cases=3, seed=1, shape=size) == [f"phantom_{n:03d}" for n in range(3)]
    generate_phantoms(tmp_path / "b", num_cases=1, seed=1, shape=size, first_case=2)
    files = sorted((tmp_path / "b").rglob("*.nii.gz"))
    assert len(files) == 3
    for file in files:
        twin = tmp_path / "a" / file.relative_to(tmp_path / "b")
        assert hashlib.sha256(file.read_bytes()).digest() == hashlib.sha256(twin.read_bytes()).digest()
    other = phantom_case(2, seed=2, shape=size)
    assert not np.array_equal(read_volume(tmp_path / "a/images/phantom_002.nii.gz").array, other.image)


def test_existing_files_are_kept_and_missing_ones_generated(tmp_path: Path) -> None:
    size = (24, 24, 12)
    generate_phantoms(tmp_path, num_cases=2, shape=size)
    kept, lost = tmp_path / "labels/phantom_000.nii.gz", tmp_path / "labels/phantom_001.nii.gz"
    stamp = kept.stat().st_mtime_ns
    lost.unlink()
    generate_phantoms(tmp_path, num_cases=2, shape=size)
    assert kept.stat().st_mtime_ns == stamp
    np.testing.assert_array_equal(read_label_map(lost).array, phantom_case(1, shape=size).label)


def test_files_contain_the_case(tmp_path: Path) -> None:
    case = phantom_case(0, shape=(24, 20, 12))
    generate_phantoms(tmp_path, num_cases=1, shape=(24, 20, 12))
    for folder, array in [("images", case.image), ("labels", case.label), ("instances", case.instances)]:
        volume = read_volume(tmp_path / folder / "phantom_000.nii.gz")
        np.testing.assert_array_equal(volume.array, array)
        assert volume.array.dtype == array.dtype
        assert volume.grid.displacement_mm(case.grid) < 1e-4  # NIfTI-1 stores float32
