import numpy as np
import pytest
from scipy import ndimage

from medseg.errors import EvaluationError
from medseg.evaluation import brats_score, surface_distances


def ball(centre: tuple[int, int, int], radius: float, shape: tuple[int, int, int] = (48, 40, 36)) -> np.ndarray:
    grid = np.ogrid[tuple(slice(size) for size in shape)]
    return sum((axis - c) ** 2 for axis, c in zip(grid, centre, strict=True)) <= radius**2


def whole_volume_score(
    prediction: np.ndarray, reference: np.ndarray, dilation: int, smallest: int
) -> tuple[float, float, int]:
    """Compute the challenge's scores over whole volumes, without any cropping."""
    all_around, structure = np.ones((3, 3, 3)), ndimage.generate_binary_structure(3, 2)
    predicted, num_predicted = ndimage.label(prediction, all_around)
    merged = ndimage.label(ndimage.binary_dilation(reference, structure, dilation), all_around)[0] * reference
    true, dices, distances = set(), [], []
    for number in range(1, merged.max() + 1):
        lesion = merged == number
        partners = set(np.unique(predicted[ndimage.binary_dilation(lesion, structure, dilation)])) - {0}
        true |= partners
        if lesion.sum() <= smallest:
            continue
        found = np.isin(predicted, list(partners))
        dices.append(2 * (lesion & found).sum() / (lesion.sum() + found.sum()))
        hd95 = surface_distances(found, lesion, (1, 1, 1)).hausdorff(95)
        distances.append(hd95 if found.any() else 374.0)
    false_positives = num_predicted - len(true)
    n = len(dices) + false_positives
    return sum(dices) / n, (sum(distances) + 374 * false_positives) / n, false_positives


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dilation", [1, 3])
def test_cropped_scores_equal_the_whole_volume_algorithm(seed: int, dilation: int) -> None:
    rng = np.random.default_rng(seed)

    def lesions() -> np.ndarray:
        balls = [ball(tuple(rng.integers(2, 34, 3)), float(rng.uniform(1.5, 5))) for _ in range(9)]
        return np.logical_or.reduce(balls)

    shared = lesions()
    prediction, reference = shared | lesions(), shared | lesions()
    score = brats_score(prediction, reference, (1, 1, 1), dilation_voxels=dilation)
    expected = whole_volume_score(prediction, reference, dilation, 50)
    assert (score.dice, score.hd95_mm, score.num_false_positive) == pytest.approx(expected)


def test_hand_drawn_lesions() -> None:
    """One lesion found exactly, one missed, one false positive: Dice (1+0)/(2+1), HD95 (0+374+374)/3."""
    reference = ball((10, 10, 10), 4) | ball((30, 30, 28), 3)
    prediction = ball((10, 10, 10), 4) | ball((40, 8, 8), 2)
    score = brats_score(prediction, reference, (1, 1, 1))
    assert score.dice == pytest.approx(1 / 3)
    assert score.hd95_mm == pytest.approx(2 * 374 / 3)
    assert (score.num_reference, score.num_missed, score.num_false_positive) == (2, 1, 1)


def test_lesions_up_to_50_voxels_are_dropped_with_their_predictions() -> None:
    small = np.zeros((20, 20, 20), bool)
    small[5:10, 5:10, 5:7] = True
    assert small.sum() == 50
    assert brats_score(small, small, (1, 1, 1)).num_false_positive == 0
    assert brats_score(np.zeros_like(small), small, (1, 1, 1)).dice == 1.0
    small[5, 5, 7] = True
    assert brats_score(np.zeros_like(small), small, (1, 1, 1)).dice == 0.0


def test_lesions_whose_dilations_touch_are_merged() -> None:
    reference = np.zeros((30, 20, 20), bool)
    reference[4:9, 6:12, 6:12] = reference[13:18, 6:12, 6:12] = True  # 4 voxels apart: 3 + 3 dilations meet
    assert brats_score(reference, reference, (1, 1, 1)).num_reference == 1
    assert brats_score(reference, reference, (1, 1, 1), dilation_voxels=1).num_reference == 2


def test_empty_masks_follow_the_challenge() -> None:
    none, some = np.zeros((48, 40, 36), bool), ball((20, 20, 20), 5)
    assert (brats_score(none, none, (1, 1, 1)).dice, brats_score(none, none, (1, 1, 1)).hd95_mm) == (1.0, 0.0)
    for prediction, reference in ((none, some), (some, none)):
        score = brats_score(prediction, reference, (1, 1, 1))
        assert (score.dice, score.hd95_mm) == (0.0, 374.0)
    with pytest.raises(EvaluationError, match=r"\(40, 36\)"):
        brats_score(none[0], none[0], (1, 1))
