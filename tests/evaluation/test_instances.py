import math
from itertools import permutations

import numpy as np
import pytest

from medseg.errors import EvaluationError
from medseg.evaluation import connected_components, instance_score


def brute_force(prediction: np.ndarray, reference: np.ndarray) -> tuple[int, int, int, float]:
    """(found, false positives, matched, ΣIoU) with every one-to-one assignment tried."""
    p_ids, r_ids = (sorted(set(array.ravel().tolist()) - {0}) for array in (prediction, reference))
    shared = {(r, p): int(((reference == r) & (prediction == p)).sum()) for r in r_ids for p in p_ids}
    iou = {(r, p): n / int(((reference == r) | (prediction == p)).sum()) if n else 0.0 for (r, p), n in shared.items()}
    found = sum(any(shared[r, p] for p in p_ids) for r in r_ids)
    false_positives = sum(not any(shared[r, p] for r in r_ids) for p in p_ids)
    best = (0.0, 0)
    slots = p_ids + [None] * len(r_ids)
    for chosen in set(permutations(slots, len(r_ids))):
        pairs = [iou[r, p] for r, p in zip(r_ids, chosen, strict=True) if p is not None and iou[r, p] >= 0.5]
        best = max(best, (sum(pairs), len(pairs)))
    return found, false_positives, best[1], best[0]


@pytest.mark.parametrize("seed", range(12))
def test_scores_equal_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    reference = np.repeat(np.repeat(rng.integers(0, 4, (3, 3)), 2, 0), 2, 1)
    prediction = np.where(rng.random(reference.shape) < 0.75, reference, rng.integers(0, 4, reference.shape)) * 7
    score = instance_score(prediction, reference)
    found, false_positives, matched, iou = brute_force(prediction, reference)
    assert (score.num_found, score.num_false_positive, score.num_matched) == (found, false_positives, matched)
    assert score.matched_iou == pytest.approx(iou)
    n = score.num_reference + score.num_predicted
    assert score.rq == pytest.approx(2 * matched / n)
    assert score.pq == pytest.approx(2 * iou / n)
    missed = score.num_reference - found
    assert score.f1_any == pytest.approx(found / (found + 0.5 * (missed + false_positives)))


def test_hand_drawn_objects() -> None:
    """One object matched, one only touched, one missed, one spurious."""
    reference = np.zeros((10, 30), bool)
    prediction = reference.copy()
    reference[1:5, 1:5] = prediction[1:5, 1:4] = True  # IoU 12/16
    reference[1:5, 8:12] = prediction[4:8, 8:12] = True  # IoU 4/28: touched, not matched
    reference[1:3, 15:17] = True  # missed
    prediction[1:3, 20:22] = True  # spurious
    score = instance_score(connected_components(prediction), connected_components(reference))
    assert (score.num_reference, score.num_predicted, score.num_found, score.num_false_positive) == (3, 3, 2, 1)
    assert score.f1_any == 2 / (2 + 0.5 * (1 + 1))
    assert score.sensitivity == 2 / 3
    assert (score.rq, score.sq, score.pq) == (1 / 3, 0.75, 0.25)
    assert score.reference_voxels.tolist() == [16, 16, 4]
    assert score.found.tolist() == [True, True, False]


def test_ties_at_half_are_matched_once() -> None:
    """Two predictions of IoU ½ with one object: one is matched, the other is not."""
    score = instance_score(np.array([1, 2]), np.array([5, 5]))
    assert (score.num_matched, score.matched_iou, score.num_false_positive) == (1, 0.5, 0)
    assert score.pq == 0.5 / 1.5


def test_corner_neighbours_are_one_object() -> None:
    mask = np.zeros((2, 2, 2), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = True
    assert connected_components(mask).max() == 1
    assert connected_components(np.eye(3, dtype=bool)).max() == 1


def test_empty_sides() -> None:
    none, some = np.zeros((3, 3), int), np.eye(3, dtype=int)
    absent = instance_score(none, none)
    assert all(math.isnan(value) for value in (absent.f1_any, absent.sensitivity, absent.rq, absent.sq, absent.pq))
    missed, spurious = instance_score(none, some), instance_score(some, none)
    assert (missed.f1_any, missed.sensitivity, missed.pq) == (0, 0, 0)
    assert (spurious.f1_any, spurious.pq, spurious.num_false_positive) == (0, 0, 1)
    assert math.isnan(spurious.sensitivity)
    with pytest.raises(EvaluationError, match=r"\(3, 3\).*\(3, 4\)"):
        instance_score(none, np.zeros((3, 4), int))
