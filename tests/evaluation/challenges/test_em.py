import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from medseg.errors import EvaluationError
from medseg.evaluation import em_score, partition_scores
from medseg.evaluation.challenges.em import segments, thinned


def with_singletons(proposal: np.ndarray, reference: np.ndarray) -> tuple[list[int], list[int]]:
    """Reference and proposed segment of each foreground pixel, proposed background as segments of one pixel."""
    inside = reference.ravel() > 0
    proposed = proposal.ravel()[inside].tolist()
    fresh = max(proposed, default=0) + 1
    return reference.ravel()[inside].tolist(), [p or fresh + i for i, p in enumerate(proposed)]


def entropy(labels: list) -> float:
    return -sum(n / len(labels) * math.log(n / len(labels)) for n in Counter(labels).values())


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_those_of_explicit_partitions(seed: int) -> None:
    """V_rand from counted pixel pairs (self-pairs included) and V_info from entropies of the written-out partitions."""
    rng = np.random.default_rng(seed)
    reference, proposal = rng.integers(0, 4, (7, 6)), rng.integers(0, 5, (7, 6))
    a, b = with_singletons(proposal, reference)
    n = len(a)
    pairs = list(combinations(range(n), 2))
    same = [2 * sum(x[i] == x[j] for i, j in pairs) + n for x in (a, b, list(zip(a, b, strict=True)))]
    v_rand, v_info = partition_scores(proposal, reference)
    assert v_rand == pytest.approx(2 * same[2] / (same[0] + same[1]))
    h_a, h_b, h_ab = entropy(a), entropy(b), entropy(list(zip(a, b, strict=True)))
    assert v_info == pytest.approx(2 * (h_a + h_b - h_ab) / (h_a + h_b))


def test_hand_made_partitions() -> None:
    reference = np.array([[1, 1, 2, 2]])
    assert partition_scores(reference, reference) == (1.0, 1.0)
    assert partition_scores(np.array([[9, 9, 4, 4]]), reference) == (1.0, 1.0)  # names do not matter
    # merged: S_AB = 2·¼, S_A = ½, S_B = 1; nothing is known of the reference
    v_rand, v_info = partition_scores(np.array([[1, 1, 1, 1]]), reference)
    assert v_rand == pytest.approx(2 * 0.5 / 1.5)
    assert v_info == pytest.approx(0)
    # one segment found, the other left to single pixels: S_AB = S_B = ¼ + ½·¼, S_A = ½
    v_rand, _ = partition_scores(np.array([[1, 1, 0, 0]]), reference)
    assert v_rand == pytest.approx(2 * 0.375 / 0.875)


def test_partitions_without_information_or_without_foreground() -> None:
    assert partition_scores(np.ones((3, 3), int), np.ones((3, 3), int)) == (1.0, 1.0)
    assert all(math.isnan(value) for value in partition_scores(np.ones((2, 2), int), np.zeros((2, 2), int)))


def test_segments_touch_by_edges_not_corners() -> None:
    assert segments(np.eye(3, dtype=bool)).max() == 3


def test_thinning_leaves_one_pixel_in_the_middle() -> None:
    wide = np.zeros((5, 11), int)
    wide[:, :3], wide[:, 8:] = 1, 2  # a border of five pixels
    expected = np.zeros((5, 11), int)
    expected[:, :5], expected[:, 6:] = 1, 2
    np.testing.assert_array_equal(thinned(wide), expected)
    assert not thinned(np.zeros((4, 4), int)).any()


def test_thinning_tolerates_wide_borders_but_not_merged_cells() -> None:
    reference = np.ones((20, 21), bool)
    reference[:, 10] = False
    wide, merged = reference.copy(), reference.copy()
    wide[:, 7:14] = False
    merged[9:11, 10] = True
    assert em_score(wide.astype(float), reference).v_rand == 1.0
    assert em_score(wide.astype(float), reference).pixel_error == pytest.approx(1 - 2 * 280 / (280 + 400))
    assert em_score(merged.astype(float), reference).rand_error == pytest.approx(1 - 2 * 0.5 / 1.5)


def test_the_best_threshold_of_the_whole_stack_is_taken() -> None:
    """Cells at 0.8, a membrane at 0.45: only thresholds from 0.5 to 0.7 separate the cells."""
    reference = np.ones((2, 12, 13), bool)
    reference[:, :, 6] = False
    proposal = np.where(reference, 0.8, 0.45)
    score = em_score(proposal, reference)
    assert (score.v_rand, score.v_info, score.pixel_f1) == (1.0, 1.0, 1.0)
    assert (score.v_rand_threshold, score.pixel_threshold) == (0.5, 0.5)
    assert em_score(proposal, reference, thresholds=(0.2,)).v_rand < 0.7


def test_slices_without_cells_do_not_count_and_invalid_proposals_are_refused() -> None:
    reference = np.zeros((2, 6, 6), bool)
    reference[0, :3] = True
    proposal = np.ones((2, 6, 6))
    assert em_score(proposal, reference).v_rand == em_score(proposal[:1], reference[:1]).v_rand
    assert math.isnan(em_score(proposal, np.zeros_like(reference)).v_rand)
    with pytest.raises(EvaluationError, match="255"):
        em_score(proposal * 255, reference)
    with pytest.raises(EvaluationError, match=r"\(6, 6\)"):
        em_score(proposal[0], reference)
