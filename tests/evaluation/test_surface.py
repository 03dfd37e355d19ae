import math
from itertools import product

import numpy as np
import pytest
import torch
from monai.metrics import SurfaceDiceMetric
from scipy import ndimage

from medseg.evaluation import surface_distances
from medseg.evaluation.surface import nearest_distances_mm, neighbour_codes, surfel_areas

SPACINGS = [(1.0, 1.0, 1.0), (0.6, 1.5, 3.0)]


def ball(shape: tuple[int, ...], centre: tuple[float, ...], radius: float) -> np.ndarray:
    grid = np.ogrid[tuple(slice(size) for size in shape)]
    return sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True)) <= radius**2


def blobs(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5) > 0.05


def box(shape: tuple[int, ...], *sides: slice) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[sides] = True
    return mask


def brute_force(mask: np.ndarray, spacing: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Surfel places in mm and sizes, corner by corner, with the codes' bits counted out one by one."""
    padded = np.pad(mask, 1)
    areas, places, sizes = surfel_areas(spacing), [], []
    for corner in product(*[range(size + 1) for size in mask.shape]):
        window = padded[tuple(slice(c, c + 2) for c in corner)].ravel()
        if window.any() and not window.all():
            code = sum(1 << (window.size - 1 - bit) for bit, inside in enumerate(window) if inside)
            places.append(np.array(corner) * spacing)
            sizes.append(areas[code])
    return np.array(places), np.array(sizes)


def test_codes_number_the_voxels_around_a_corner() -> None:
    mask = np.zeros((2, 2, 2), bool)
    mask[0, 0, 1] = True
    codes = neighbour_codes(mask)
    assert codes.shape == (3, 3, 3)
    assert codes[1, 1, 1] == 0b01000000  # it is the second of the eight voxels around the middle corner
    assert codes[0, 0, 1] == 0b00000001  # and the last of the eight around its own lowest corner
    assert codes.astype(bool).sum() == 8


@pytest.mark.parametrize("spacing", SPACINGS)
def test_areas_of_flat_faces_are_exact(spacing: tuple[float, float, float]) -> None:
    a, b, c = spacing
    areas = surfel_areas(spacing)
    # halves of the neighbourhood along each axis: a plane across the other two
    assert areas[0b11110000] == pytest.approx(b * c)
    assert areas[0b11001100] == pytest.approx(a * c)
    assert areas[0b10101010] == pytest.approx(a * b)
    np.testing.assert_allclose(areas, areas[::-1], rtol=1e-6)  # inside and outside swapped: the same surface
    assert areas[0] == areas[255] == 0


@pytest.mark.parametrize("spacing", [*SPACINGS, (0.7, 3.0)])
def test_areas_are_those_of_monai(spacing: tuple[float, ...]) -> None:
    from monai.metrics.utils import get_code_to_measure_table

    expected = get_code_to_measure_table(spacing)[0].numpy()
    np.testing.assert_allclose(surfel_areas(spacing), expected, rtol=1e-6)


def test_lengths_of_straight_contours_are_exact() -> None:
    lengths = surfel_areas((2.0, 5.0))
    assert lengths[0b1100] == 5.0  # the first row inside: an edge along the second axis
    assert lengths[0b1010] == 2.0
    assert lengths[0b1000] == pytest.approx(0.5 * math.hypot(2, 5))


@pytest.mark.parametrize("spacing", SPACINGS)
def test_planes_moved_by_voxels_have_closed_form_distances(spacing: tuple[float, float, float]) -> None:
    """Two slabs through the whole image, one 3 voxels thicker: one face coincides, one lies 3·spacing away."""
    reference = box((12, 8, 8), slice(0, 4))
    prediction = box((12, 8, 8), slice(0, 7))
    surfaces = surface_distances(prediction, reference, spacing)
    gap = 3 * spacing[0]
    assert surfaces.hausdorff(100) == pytest.approx(gap)
    assert surfaces.reference_mm.max() == pytest.approx(gap)
    assert surfaces.nsd(gap) == 1.0  # at the tolerance is within it
    assert surfaces.nsd(gap - 1e-3) < 1.0


def test_single_voxels_have_closed_form_metrics() -> None:
    """Every surfel of a voxel has a twin of the same size 10 voxels on, so all distances are known."""
    prediction, reference = (box((20, 3, 3), slice(i, i + 1), slice(1, 2), slice(1, 2)) for i in (2, 12))
    surfaces = surface_distances(prediction, reference, (2.0, 1.0, 1.0))
    assert surfaces.hausdorff(95) == pytest.approx(20.0)
    assert sorted(np.unique(surfaces.reference_mm)) == pytest.approx([18.0, 20.0])  # near corners and far corners
    assert surfaces.assd() == pytest.approx(19.0)
    assert surfaces.nsd(17.9) == 0.0
    assert surfaces.nsd(18.0) == pytest.approx(0.5)
    assert surfaces.nsd(20.0) == 1.0


def test_identical_masks_are_at_zero() -> None:
    mask = ball((20, 20, 20), (9, 10, 9), 6)
    surfaces = surface_distances(mask, mask, (1, 2, 3))
    assert (surfaces.nsd(0.0), surfaces.hausdorff(95), surfaces.assd()) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [((14, 12), (1.0, 1.0)), ((14, 12), (0.4, 3.0)), *(((9, 8, 7), spacing) for spacing in SPACINGS)],
)
def test_distances_and_sizes_equal_brute_force(shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    prediction, reference = blobs(shape, 0), blobs(shape, 1)
    (p, p_size), (r, r_size) = brute_force(prediction, spacing), brute_force(reference, spacing)
    apart = np.linalg.norm(p[:, None] - r[None], axis=-1)
    surfaces = surface_distances(prediction, reference, spacing)
    np.testing.assert_allclose(np.sort(surfaces.predicted_mm), np.sort(apart.min(1)), rtol=1e-6)
    np.testing.assert_allclose(np.sort(surfaces.reference_mm), np.sort(apart.min(0)), rtol=1e-6)
    assert surfaces.predicted_area.sum() == pytest.approx(p_size.sum())
    total = p_size.sum() + r_size.sum()
    assert surfaces.assd() == pytest.approx((apart.min(1) @ p_size + apart.min(0) @ r_size) / total)
    near = p_size[apart.min(1) <= 1.0].sum() + r_size[apart.min(0) <= 1.0].sum()
    assert surfaces.nsd(1.0) == pytest.approx(near / total)


@pytest.mark.parametrize(
    ("shape", "spacing"), [((40, 40), (1.0, 2.0)), *(((24, 22, 20), spacing) for spacing in SPACINGS)]
)
def test_nsd_equals_monai(shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    prediction, reference = blobs(shape, 2), blobs(shape, 3)
    onehot = [torch.from_numpy(np.stack([~mask, mask]))[None].float() for mask in (prediction, reference)]
    metric = SurfaceDiceMetric(class_thresholds=[0.8], use_subvoxels=True)
    expected = metric(*onehot, spacing=spacing).item()
    assert surface_distances(prediction, reference, spacing).nsd(0.8) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_metric_equals_the_surface_distance_package(spacing: tuple[float, ...]) -> None:
    package = pytest.importorskip("surface_distance", reason="pip install --no-deps surface-distance")
    prediction, reference = ball((30, 28, 26), (14, 13, 12), 9), ball((30, 28, 26), (16, 13, 13), 8)
    prediction |= blobs(prediction.shape, 5)
    try:
        theirs = package.compute_surface_distances(reference, prediction, spacing)
    except AttributeError as error:
        pytest.skip(f"this surface-distance does not run with the installed NumPy and SciPy: {error}")
    ours = surface_distances(prediction, reference, spacing)
    assert ours.nsd(1.0) == pytest.approx(package.compute_surface_dice_at_tolerance(theirs, 1.0), abs=1e-6)
    for percent in (50, 95, 100):
        assert ours.hausdorff(percent) == pytest.approx(package.compute_robust_hausdorff(theirs, percent), rel=1e-6)
    forth, back = package.compute_average_surface_distance(theirs)
    areas = ours.reference_area.sum(), ours.predicted_area.sum()
    assert ours.assd() == pytest.approx((forth * areas[0] + back * areas[1]) / sum(areas), rel=1e-6)


def test_metrics_do_not_depend_on_axis_order_or_position() -> None:
    prediction, reference = blobs((16, 14, 12), 7), blobs((16, 14, 12), 8)
    spacing = (1.0, 2.0, 0.5)
    first = surface_distances(prediction, reference, spacing)
    turned = surface_distances(prediction.T, reference.T, spacing[::-1])
    padded = surface_distances(np.pad(prediction, 3), np.pad(reference, 3), spacing)
    for other in (turned, padded):
        assert other.nsd(1.0) == pytest.approx(first.nsd(1.0), rel=1e-6)
        assert other.hausdorff() == pytest.approx(first.hausdorff(), rel=1e-6)
        assert other.assd() == pytest.approx(first.assd(), rel=1e-6)


def test_empty_masks_have_the_documented_raw_values() -> None:
    mask, empty = ball((8, 8, 8), (4, 4, 4), 2), np.zeros((8, 8, 8), bool)
    for prediction, reference in ((mask, empty), (empty, mask)):
        surfaces = surface_distances(prediction, reference, (1, 1, 1))
        assert (surfaces.nsd(5.0), surfaces.hausdorff(), surfaces.assd()) == (0.0, math.inf, math.inf)
    surfaces = surface_distances(empty, empty, (1, 1, 1))
    assert all(math.isnan(value) for value in (surfaces.nsd(1.0), surfaces.hausdorff(), surfaces.assd()))


def random_points(shape: tuple[int, ...], share: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(shape) < share


@pytest.mark.parametrize(("shape", "spacing"), [((20, 31), (0.7, 2.0)), ((13, 20, 9), (1.0, 0.5, 3.0))])
@pytest.mark.parametrize(("target_share", "query_share"), [(0.002, 0.3), (0.05, 0.05), (0.3, 0.01)])
def test_nearest_distances_equal_the_distance_transform(
    shape: tuple[int, ...], spacing: tuple[float, ...], target_share: float, query_share: float
) -> None:
    queries, targets = random_points(shape, query_share, 0), random_points(shape, target_share, 1)
    targets[tuple(size // 2 for size in shape)] = True
    expected = ndimage.distance_transform_edt(~targets, sampling=spacing)[queries]
    np.testing.assert_allclose(nearest_distances_mm(queries, targets, spacing), expected, rtol=1e-14)


def test_a_surface_inside_another_is_measured_exactly() -> None:
    """All targets are nearly equally far from each query, the slowest case for a tree."""
    grid = np.ogrid[:64, :64, :64]
    distance = np.sqrt(sum((axis - 32) ** 2 for axis in grid))
    inner, outer = (np.abs(distance - radius) < 1 for radius in (12, 30))
    expected = ndimage.distance_transform_edt(~outer)[inner]
    np.testing.assert_allclose(nearest_distances_mm(inner, outer, (1, 1, 1)), expected)


def test_no_targets_are_infinitely_far_and_no_queries_are_no_distances() -> None:
    queries, none = random_points((6, 6), 0.5, 0), np.zeros((6, 6), bool)
    assert np.isinf(nearest_distances_mm(queries, none, (1, 1))).all()
    assert nearest_distances_mm(none, queries, (1, 1)).size == 0
    assert not nearest_distances_mm(queries, queries, (1, 1)).any()
