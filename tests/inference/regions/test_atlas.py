"""Registration of a template: found within half a millimetre, or refused."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from inference.regions.phantom_head import CENTERS, grid, head, moved, positions
from scipy.spatial.transform import Rotation

from medseg.errors import RegionError
from medseg.inference.regions import Template, locate
from medseg.inference.regions.atlas import low_resolution


@pytest.fixture(scope="module")
def template() -> Template:
    shape, affine = grid(4.0)
    array = head(positions(shape, affine), has_skull=False)
    return Template((array * 100).astype(np.float32), affine)


def scan_of(matrix: np.ndarray | None = None, has_skull: bool = True, **field_of_view: float):
    shape, affine = grid(**field_of_view)
    points = positions(shape, affine)
    return head(points if matrix is None else moved(points, matrix), has_skull), affine


def placed(angles_deg, shift_mm) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", angles_deg, degrees=True).as_matrix()
    matrix[:3, 3] = shift_mm
    return matrix


def error_mm(location, matrix: np.ndarray) -> float:
    """Largest distance between a region's centre as found and as it is."""
    points = np.array(list(CENTERS.values()))
    truth = points @ matrix[:3, :3].T + matrix[:3, 3]
    return max(np.linalg.norm(location.to_scan(p) - t) for p, t in zip(points, truth, strict=True))


@pytest.mark.parametrize("has_skull", [True, False])
@pytest.mark.parametrize(
    ("angles", "shift"), [((0, 0, 0), (0, 0, 0)), ((14, -9, 7), (10, -12, 5)), ((-20, 0, 5), (0, 0, 15))]
)
def test_a_moved_head_is_found(template, has_skull, angles, shift):
    matrix = placed(angles, shift)
    location = locate(*scan_of(matrix, has_skull), template, CENTERS)
    assert error_mm(location, matrix) < 1.0
    assert location.disagreement_mm < 1.0
    np.testing.assert_allclose(location.rotation, matrix[:3, :3], atol=0.03)


@pytest.mark.parametrize("view", [{"below": 220.0}, {"below": 60.0}, {"above": 60.0}])
def test_the_field_of_view_does_not_matter(template, view):
    location = locate(*scan_of(**view), template, CENTERS)
    assert error_mm(location, np.eye(4)) < 1.0


def test_a_smaller_head_is_found_with_its_scale(template):
    matrix = np.diag([0.85, 0.85, 0.85, 1.0])
    location = locate(*scan_of(matrix), template, CENTERS)
    assert error_mm(location, matrix) < 1.0
    assert location.scales == pytest.approx([0.85] * 3, abs=0.02)


def test_the_result_does_not_depend_on_threads(template):
    scan = scan_of(placed((5, 3, -4), (3, 2, 1)))
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    found = []
    try:
        for threads in (1, 4):
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
            found.append(locate(*scan, template, CENTERS).matrix)
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)
    np.testing.assert_array_equal(*found)


def noise(array, affine):
    return np.random.default_rng(0).normal(size=array.shape), affine


def inverted(array, affine):
    return array.max() - array, affine


def constant(array, affine):
    return np.ones_like(array), affine


def upside_down(array, affine):
    return array, np.diag([1.0, -1.0, -1.0, 1.0]) @ affine


def stretched(array, affine):
    return array, affine @ np.diag([1.0, 1.0, 1.6, 1.0])


def crop(array, affine):
    return array[25:45, 32:58, 25:45], affine


def sheared(array, affine):
    return array, affine @ np.array([[1, 0, 0.2, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize("spoil", [noise, inverted, constant, upside_down, stretched, crop, sheared])
def test_what_is_no_head_is_refused_with_the_files_name_and_a_way_out(template, spoil):
    with pytest.raises(RegionError) as caught:
        locate(*spoil(*scan_of()), template, CENTERS, name="sub-01.nii.gz")
    message = str(caught.value)
    assert message.startswith("sub-01.nii.gz: ")
    assert "--region-centre left=x,y,z" in message
    assert "\n" not in message


def test_a_header_that_is_upside_down_is_named(template):
    with pytest.raises(RegionError, match="180 degrees about the left–right axis"):
        locate(*upside_down(*scan_of()), template, CENTERS)


def test_low_resolution_keeps_constants_everywhere_and_straight_lines_inside():
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("z", 20, degrees=True).as_matrix() @ np.diag([0.7, 1.0, 3.0])
    affine[:3, 3] = [5, -6, 7]
    shape = (63, 41, 17)
    flat, _ = low_resolution(np.full(shape, 3.5), affine, 4.0)
    np.testing.assert_allclose(flat, 3.5, rtol=1e-6)
    slope = positions(shape, affine) @ [1.0, -2.0, 0.5]
    coarse, coarse_affine = low_resolution(slope, affine, 4.0)
    expected = positions(coarse.shape, coarse_affine) @ [1.0, -2.0, 0.5]
    inside = (slice(2, -2),) * 3
    np.testing.assert_allclose(coarse[inside], expected[inside], atol=0.05)
    np.testing.assert_allclose(np.linalg.norm(coarse_affine[:3, :3], axis=0), 4.0)
