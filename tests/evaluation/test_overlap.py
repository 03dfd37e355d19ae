import math

import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric
from monai.networks.utils import one_hot

from medseg.evaluation import case_dice
from medseg.evaluation.overlap import dice, precision, recall, size_difference


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


def test_an_invented_structure_is_zero_where_monai_ignores_it() -> None:
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
