"""Grid: closed forms, and invariants over all 48 orientations."""

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, ornt_transform
from volumes.affines import ORIENTATIONS, affine_for, rotation_z

from medseg.errors import GeometryError
from medseg.volumes import Grid, reorder


@pytest.mark.parametrize("code", ORIENTATIONS)
def test_orientation_and_spacing_of_all_48(code: str) -> None:
    grid = Grid((5, 7, 3), affine_for(code))
    assert grid.orientation == code
    assert grid.spacing == pytest.approx((1, 2, 3))
    assert not grid.is_oblique
    assert grid.voxel_volume_mm3 == pytest.approx(6)


def test_an_oblique_grid_keeps_its_spacing() -> None:
    grid = Grid((5, 7, 3), rotation_z(10) @ affine_for("RAS"))
    assert grid.spacing == pytest.approx((1, 2, 3))
    assert grid.orientation == "RAS"
    assert grid.is_oblique


def test_displacement_has_closed_forms() -> None:
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    grid = Grid((10, 10, 10), affine)
    assert grid.displacement_mm(grid) == 0
    shifted = affine.copy()
    shifted[:3, 3] = (3, 4, 0)
    assert grid.displacement_mm(Grid((10, 10, 10), shifted)) == pytest.approx(5)
    # spacing 2 → 2.1: the far corner is at index 9.5, so it moves 0.95 mm along each axis (the near one 0.05 mm)
    assert grid.displacement_mm(Grid((10, 10, 10), np.diag([2.1, 2.1, 2.1, 1]))) == pytest.approx(0.95 * 3**0.5)
    # a flip about the first voxel's centre sends x = 19 mm to x = −19 mm
    assert grid.displacement_mm(Grid((10, 10, 10), np.diag([-2.0, 2, 2, 1]))) == pytest.approx(38)


def test_displacement_is_symmetric_and_bounds_every_voxel() -> None:
    rng = np.random.default_rng(0)
    one = Grid((4, 5, 6), rotation_z(3) @ affine_for("LPS"))
    two = Grid((4, 5, 6), one.affine + np.vstack([rng.normal(0, 0.05, (3, 4)), np.zeros(4)]))
    bound = one.displacement_mm(two)
    assert two.displacement_mm(one) == bound
    voxels = np.stack([*np.indices(one.shape).reshape(3, -1), np.ones(4 * 5 * 6)])
    moved = np.linalg.norm(((one.affine - two.affine) @ voxels)[:3], axis=0)
    assert 0 < moved.max() <= bound


@pytest.mark.parametrize(("shift_mm", "is_same"), [(0.0, True), (0.49, True), (-0.49, True), (0.51, False)])
def test_half_the_smallest_spacing_is_the_tolerance(shift_mm: float, is_same: bool) -> None:
    reference = Grid((5, 7, 3), affine_for("RAS", (1.0, 2.0, 3.0)))
    affine = reference.affine.copy()
    affine[2, 3] += shift_mm
    difference = Grid((5, 7, 3), affine).difference(reference, "labels.nii")
    assert (difference == "") is is_same
    if not is_same:
        assert "0.51 mm" in difference
        assert "labels.nii" in difference
        assert "0.5 mm" in difference
    other = Grid((5, 7, 4), affine).difference(reference)
    assert "(5, 7, 4)" in other
    assert "(5, 7, 3)" in other


def test_two_dimensions() -> None:
    grid = Grid((30, 20), np.diag([0.5, 0.25, 1, 1]))
    assert grid.spacing == (0.5, 0.25)
    assert grid.orientation == "RA"
    assert grid.corners_mm().shape == (4, 3)
    with pytest.raises(GeometryError, match="2D grid cannot be compared with a 3D"):
        grid.displacement_mm(Grid((30, 20, 1), np.eye(4)))


def test_a_grid_is_immutable() -> None:
    affine = np.eye(4)
    grid = Grid((2, 3, 4), affine)
    affine[0, 3] = 99
    assert grid == Grid((2, 3, 4), np.eye(4))
    assert hash(grid) == hash(Grid((2, 3, 4), np.eye(4)))
    assert grid != Grid((2, 3, 4), affine)
    with pytest.raises(ValueError, match="read-only"):
        grid.affine[0, 0] = 2


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_tiny_and_huge_units_are_not_singular(scale: float) -> None:
    assert Grid((2, 2, 2), np.diag([scale, scale, scale, 1])).spacing == pytest.approx((scale,) * 3)


@pytest.mark.parametrize(
    ("shape", "affine", "message"),
    [
        ((2, 0, 2), np.eye(4), "at least 1 voxel"),
        ((2,), np.eye(4), "2 or 3 sizes"),
        ((2, 2, 2, 2), np.eye(4), "2 or 3 sizes"),
        ((2, 2, 2), np.eye(3), "4×4"),
        ((2, 2, 2), np.diag([1, np.nan, 1, 1]), "finite"),
        ((2, 2, 2), np.diag([1, np.inf, 1, 1]), "finite"),
        ((2, 2, 2), np.diag([1, 0, 1, 1]), "singular"),
        ((2, 2, 2), np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "singular"),
        ((2, 2, 2), np.diag([1, 1, 1, 2]), "last row"),
    ],
)
def test_bad_shapes_and_affines_are_refused(shape: tuple[int, ...], affine: np.ndarray, message: str) -> None:
    with pytest.raises(GeometryError, match=message):
        Grid(shape, affine)


@pytest.mark.parametrize("code", ["RAS", "LPI", "SAR", "AIL"])
@pytest.mark.parametrize("degrees", [0.0, 30.0, 40.0])
def test_reordering_keeps_every_voxel_where_it_is(code: str, degrees: float) -> None:
    shape = (3, 4, 5)
    turn = np.eye(4)
    angle = np.radians(degrees)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    target = Grid(shape, turn @ np.diag([1.0, 2.0, 3.0, 1.0]))
    array = np.arange(60, dtype=np.int16).reshape(shape)
    image = nib.Nifti1Image(array, target.affine)
    other = image.as_reoriented(ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(code)))
    back, grid = reorder(np.asanyarray(other.dataobj), Grid(other.shape, other.affine), target)
    np.testing.assert_array_equal(back, array)
    assert not grid.difference(target)
    np.testing.assert_allclose(grid.affine, target.affine, atol=1e-6)


def test_grids_that_match_are_left_alone() -> None:
    """At 45° the nearest patient axis is decided by rounding, so that two equal grids may seem to need a turn."""
    half = np.sqrt(0.5)
    affine = np.array([[half, -half, 0, 0], [half, half, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    nearly = affine.copy()
    nearly[0, 0] -= 1e-7
    array = np.arange(60).reshape(3, 4, 5)
    for first, second in ((affine, nearly), (nearly, affine)):
        same, grid = reorder(array, Grid(array.shape, first), Grid(array.shape, second))
        assert same is array
        assert np.array_equal(grid.affine, first)
