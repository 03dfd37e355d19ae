import numpy as np
import pytest

from medseg.errors import EvaluationError
from medseg.evaluation import confusion
from medseg.evaluation.overlap import SLAB_VOXELS, label_regions, present_values


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
    assert counts.reference_values == [-5, 0, 7, 3_000_000_000]
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


def test_what_cannot_be_counted_is_named() -> None:
    with pytest.raises(EvaluationError, match=r"one shape, found \(2, 2\) and \(2, 3\)"):
        confusion(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8))
    with pytest.raises(EvaluationError, match="prediction must hold integer labels, found float64"):
        confusion(np.zeros((2, 2)), np.zeros((2, 2), np.uint8))
    with pytest.raises(EvaluationError, match="'tumour'"):
        label_regions({"tumour": ()})
