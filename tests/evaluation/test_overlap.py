import math

import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric
from monai.networks.utils import one_hot
from scipy import ndimage

from medseg.errors import EvaluationError
from medseg.evaluation import case_dice, confusion
from medseg.evaluation.overlap import (
    SLAB_VOXELS,
    LabelBoxes,
    bounding_box,
    dice,
    label_regions,
    precision,
    present_values,
    recall,
    size_difference,
    union,
)


def test_closed_forms() -> None:
    # 4 reference voxels, 6 predicted, 3 shared.
    assert dice(4, 6, 3) == 0.6
    assert precision(6, 3) == 0.5
    assert recall(4, 3) == 0.75
    assert size_difference(4, 6, 0.25) == (0.5, 50.0)
    assert size_difference(4, 0, 0.25) == (-1.0, -100.0)


def test_empty_masks() -> None:
    assert math.isnan(dice(0, 0, 0))
    assert dice(3, 0, 0) == dice(0, 3, 0) == 0
    assert math.isnan(precision(0, 0))
    assert math.isnan(recall(0, 0))
    assert size_difference(0, 5, 1.0)[0] == 5
    assert math.isnan(size_difference(0, 5, 1.0)[1])


@pytest.mark.parametrize("shape", [(20, 21), (8, 9, 10)])
def test_case_dice_equals_monai_where_the_reference_is_not_empty(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    prediction, reference = rng.integers(0, 4, shape), rng.integers(0, 4, shape)
    onehot = [one_hot(torch.from_numpy(array)[None, None], 4) for array in (prediction, reference)]
    expected = DiceMetric(include_background=False)(*onehot)[0].numpy()
    np.testing.assert_allclose(case_dice(prediction, reference, [1, 2, 3]), expected, rtol=1e-6)


def test_a_spurious_structure_has_dice_0_where_monai_ignores_it() -> None:
    reference = np.zeros((4, 4), np.uint8)
    prediction = reference.copy()
    prediction[0, 0] = 1
    assert case_dice(prediction, reference, [1]).tolist() == [0.0]
    onehot = [one_hot(torch.from_numpy(a.astype(np.int64))[None, None], 2) for a in (prediction, reference)]
    assert math.isnan(DiceMetric(include_background=False)(*onehot).item())


def test_tensors_regions_and_absence() -> None:
    reference = torch.tensor([[1, 2], [0, 0]])
    prediction = torch.tensor([[2, 1], [0, 0]])
    scores = case_dice(prediction, reference, [1, (1, 2), 9])
    assert scores[:2].tolist() == [0.0, 1.0]
    assert math.isnan(scores[2])


def brute_force(prediction: np.ndarray, reference: np.ndarray, inside: set[int]) -> tuple[int, int, int]:
    p, r = np.isin(prediction, list(inside)), np.isin(reference, list(inside))
    return int(r.sum()), int(p.sum()), int((p & r).sum())


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
@pytest.mark.parametrize("order", ["CC", "FF", "CF", "FC"])
def test_counts_equal_brute_force_in_any_memory_order(dtype: type, order: str) -> None:
    rng = np.random.default_rng(0)
    prediction = np.array(rng.integers(0, 6, (9, 10, 11)), dtype=dtype, order=order[0])
    reference = np.array(rng.integers(0, 6, (9, 10, 11)), dtype=dtype, order=order[1])
    counts = confusion(prediction, reference)
    for inside in ({1}, {2, 5}, {0, 1, 2, 3, 4, 5}, {77}):
        assert counts.region(sorted(inside)) == brute_force(prediction, reference, inside)


def test_values_far_apart_and_negative() -> None:
    reference = np.array([[-5, 0, 3_000_000_000], [7, 7, 0]])
    prediction = np.array([[-5, 7, 3_000_000_000], [7, 0, 0]])
    counts = confusion(prediction, reference)
    assert counts.values.tolist() == [-5, 0, 7, 3_000_000_000]
    assert counts.region([3_000_000_000]) == (1, 1, 1)
    assert counts.region([7]) == (2, 2, 1)


def test_more_voxels_than_one_slab() -> None:
    reference = np.zeros(SLAB_VOXELS + 3, dtype=np.uint8)
    reference[-2:] = 4
    assert confusion(reference, reference).region([4]) == (2, 2, 2)


def test_bool_masks_and_empty_arrays() -> None:
    mask = np.array([[True, False], [True, True]])
    assert confusion(mask, ~mask).region([1]) == (1, 3, 0)
    assert confusion(np.zeros((0, 3), np.uint8), np.zeros((0, 3), np.uint8)).region([1]) == (0, 0, 0)


@pytest.mark.parametrize("values", [[3, 3, 250, 0], [-70000, 70000, 0], [2**40, 1]])
def test_present_values_equal_unique(values: list[int]) -> None:
    array = np.array(values)
    assert present_values(array).tolist() == np.unique(array).tolist()


def test_arrays_that_cannot_be_counted_are_refused() -> None:
    with pytest.raises(EvaluationError, match=r"\(2, 2\).*\(2, 3\)"):
        confusion(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8))
    with pytest.raises(EvaluationError, match=r"prediction.*float64"):
        confusion(np.zeros((2, 2)), np.zeros((2, 2), np.uint8))
    with pytest.raises(EvaluationError, match="'tumour'"):
        label_regions({"tumour": ()})


@pytest.mark.parametrize("shift", [0, 100_000, -3])
def test_label_boxes_are_the_smallest_boxes(shift: int) -> None:
    """Labels that are too large for the table, or negative, take another path with the same result."""
    rng = np.random.default_rng(0)
    label_map = ndimage.zoom(rng.integers(0, 5, (4, 4, 4)), 4, order=0) * 1
    label_map[label_map > 0] += shift
    boxes = LabelBoxes(label_map)
    for values in ([1 + shift], [2 + shift, 4 + shift]):
        where = np.argwhere(np.isin(label_map, values))
        expected = tuple(slice(a, b + 1) for a, b in zip(where.min(0), where.max(0), strict=True))
        assert boxes.region(values) == expected


def test_absent_labels_have_empty_boxes_that_do_not_widen_a_union() -> None:
    label_map = np.zeros((5, 6), np.uint8)
    label_map[2:4, 1] = 3
    boxes = LabelBoxes(label_map)
    assert boxes.region([2]) == boxes.region([200]) == (slice(0, 0), slice(0, 0))
    assert union(2, [boxes.region([2]), boxes.region([3])]) == (slice(2, 4), slice(1, 2))
    assert bounding_box(label_map == 3) == (slice(2, 4), slice(1, 2))
    assert LabelBoxes(np.zeros((3, 3), np.uint8)).region([1]) == (slice(0, 0), slice(0, 0))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.uint16, np.int64])
def test_every_integer_type_is_read(dtype: type) -> None:
    assert LabelBoxes(np.array([[0, 1], [0, 1]], dtype)).region([1]) == (slice(0, 2), slice(1, 2))
