"""The rule that gates low precision, on logits with known differences."""

from __future__ import annotations

import numpy as np

from medseg.inference.golden_agreement import Tolerance, objection


def exact() -> np.ndarray:
    """Three channels that win a third of 6000 voxels each, by a margin of 2."""
    winner = np.repeat(np.arange(3), 2000).reshape(10, 20, 30)
    return np.where(np.arange(3)[:, None, None, None] == winner, 1.0, -1.0)


def swapped(voxels: int) -> np.ndarray:
    """The same with that many voxels of channel 0 given to channel 1."""
    logits = exact()
    flat = logits.reshape(3, -1)
    flat[[0, 1], :voxels] = flat[[1, 0], :voxels]
    return logits


def test_small_differences_pass() -> None:
    noise = np.random.default_rng(0).uniform(-0.05, 0.05, size=exact().shape)
    assert objection(exact(), exact()) == ""
    assert objection(exact(), exact() + noise) == ""


def test_each_rule_objects_in_its_own_words() -> None:
    # 8 of 2000 voxels lost: Dice 2·1992/3992 = 0.99800, exactly at the limit; one more is beyond it.
    loose = Tolerance(logit_difference=10)
    assert objection(exact(), swapped(7), loose) == ""
    assert "Dice of channel 0 falls by 0.0023" in objection(exact(), swapped(9), loose)
    assert "labels agree on 99.33%" in objection(exact(), swapped(40), Tolerance(dice_loss=1, logit_difference=10))
    assert "logits differ by up to" in objection(exact(), exact() * 1.5)
    assert "not finite" in objection(exact(), exact() * np.nan)
    assert "shape" in objection(exact(), exact()[:, 1:])


def test_an_empty_label_never_passes() -> None:
    empty = exact()
    empty[2] = -5
    assert "0 voxels of channel 2, fewer than 500" in objection(empty, empty)


def test_dice_against_a_reference_may_rise_but_not_fall() -> None:
    truth = swapped(40).argmax(0)
    loose = Tolerance(logit_difference=10, label_agreement=0.9)
    assert objection(exact(), swapped(40), loose, truth) == ""
    assert "Dice of channel 0 falls" in objection(swapped(40), exact(), loose, truth)
