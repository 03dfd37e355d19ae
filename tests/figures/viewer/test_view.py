import numpy as np
import pytest

from medseg.figures.viewer.view import MAX_VALUES, View, as_bytes, cut_out, thinning_steps
from medseg.volumes import Grid

EVERYTHING = (slice(0, 0),) * 3


def whole(labels: np.ndarray, affine: np.ndarray, image: np.ndarray, modality: str, **options: object) -> View:
    """Make a view of the whole image."""
    named = {"modalities": {"image": modality}} | options
    return cut_out(labels, labels, Grid(labels.shape, affine), [("image", image)], EVERYTHING, **named)


def masks(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    reference, prediction = np.zeros(shape, np.int16), np.zeros(shape, np.int16)
    reference[30:33, 30:32, 40] = 300
    prediction[34:36, 31, 41] = 7
    return prediction, reference


def test_the_view_keeps_20_mm_around_both_masks_with_a_note():
    prediction, reference = masks((80, 70, 60))
    affine = np.diag([2.0, 3.0, 10.0, 1.0])
    box = (slice(30, 36), slice(30, 32), slice(40, 42))
    view = cut_out(prediction, reference, Grid(reference.shape, affine), [], box)
    # 20 mm are 10, 7 and 2 voxels: i 30…35, j 30…31, k 40…41 grow by them
    assert view.reference.shape == (6 + 20, 2 + 14, 2 + 4)
    np.testing.assert_allclose(view.affine[:3, 3], [20 * 2, 23 * 3, 38 * 10])
    assert any("80×70×60" in note and "26×16×6" in note for note in view.notes)
    assert view.values == (7, 300)
    np.testing.assert_array_equal(np.unique(view.reference), [0, 2])
    assert np.count_nonzero(view.prediction == 1) == 2


def test_without_labels_the_whole_image_is_kept():
    empty = np.zeros((9, 8, 7), np.uint8)
    view = cut_out(empty, empty, Grid(empty.shape, np.eye(4)), [], EVERYTHING)
    assert view.reference.shape == (9, 8, 7)
    assert view.remarks == ()


def test_label_bytes_are_exact_up_to_255_values():
    rng = np.random.default_rng(0)
    values = np.sort(rng.choice(np.arange(1, 60_000), MAX_VALUES, replace=False)).tolist()
    label_map = rng.choice([0, *values], (20, 30, 10)).astype(np.uint16)
    table = np.array([0, *values])
    np.testing.assert_array_equal(table[as_bytes(label_map, values)], label_map)


def test_more_than_255_values_are_noted():
    label_map = np.arange(1, 1001).reshape(10, 10, 10)
    view = cut_out(label_map, label_map, Grid(label_map.shape, np.eye(4)), [], EVERYTHING)
    assert "shows 255 of 1000 label values" in view.remarks
    assert int(np.count_nonzero(view.reference)) == 255


@pytest.mark.parametrize("most", [60, 500, 3000, 23_999])
def test_thinning_fits_and_evens_out_the_spacing(most):
    shape, spacing = (40, 30, 20), (0.5, 0.5, 3.0)
    steps = thinning_steps(shape, spacing, most)
    assert np.prod([-(-n // s) for n, s in zip(shape, steps, strict=True)]) <= most
    shown = np.multiply(spacing, steps)
    assert shown.max() <= 3.0 or steps[2] == 1 or shown.max() - shown.min() <= 3.0  # the coarse axis is touched last


@pytest.mark.parametrize("seed", range(3))
def test_a_thinned_view_averages_the_image_and_subsamples_labels(seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (24, 18, 12)).astype(np.uint8)
    labels = rng.integers(1, 4, image.shape).astype(np.uint8)
    view = whole(labels, np.diag([1.0, 1, 2, 1]), image, "MR")
    thin = view.thinned(700)
    steps = thin.steps
    assert thin.reference.size <= 700
    middle = tuple(slice((s - 1) // 2, None, s) for s in steps)
    np.testing.assert_array_equal(thin.reference, view.reference[middle])
    blocks = (
        view.channels[0]
        .levels[tuple(slice(0, n // s * s) for n, s in zip(image.shape, steps, strict=True))]
        .astype(float)
    )
    shape = [part for n, s in zip(blocks.shape, steps, strict=True) for part in (n // s, s)]
    means = blocks.reshape(shape).mean(axis=(1, 3, 5))
    inside = tuple(slice(0, n) for n in means.shape)
    assert np.abs(thin.channels[0].levels[inside] - means).max() <= 3  # three roundings down
    # the first voxel shown lies where the voxel it was taken from lies
    first = view.affine @ [*((s - 1) // 2 for s in steps), 1]
    np.testing.assert_allclose(thin.affine[:, 3], first)
    assert "×".join(map(str, steps)) in thin.remarks[-1]


def test_a_huge_scan_is_subsampled_before_it_is_converted():
    # A scan that cannot be copied: one value shown through strides of 0 bytes.
    image = np.broadcast_to(np.int16(40), (1500, 1500, 900))
    labels = np.broadcast_to(np.uint8(1), image.shape)
    view = whole(labels, np.diag([0.5, 0.5, 0.6, 1]), image, "CT", known=[1])
    assert view.reference.size <= 20_000_000
    thin = view.thinned(2_500_000)
    assert thin.reference.size <= 2_500_000
    assert (thin.reference == 1).all()
    assert "numbers are of all voxels" in thin.remarks[-1]
