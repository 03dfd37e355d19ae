"""The rule that gates low precision, on logits with known differences."""

from __future__ import annotations

import numpy as np
import torch

from medseg.inference.backends.agreement import SAME_PRECISION, ExactResult, Tolerance, decided, objection
from medseg.transforms.restore.label_decision import LabelDecision
from medseg.transforms.restore.native import restore_labels


def winners() -> np.ndarray:
    """Three channels that win a third of 6000 voxels each, by a margin of 2."""
    winner = np.repeat(np.arange(3), 2000).reshape(10, 20, 30)
    return np.where(np.arange(3)[:, None, None, None] == winner, 1.0, -1.0)


def swapped(voxels: int) -> np.ndarray:
    """The same with that many voxels of channel 0 given to channel 1."""
    logits = winners()
    flat = logits.reshape(3, -1)
    flat[[0, 1], :voxels] = flat[[1, 0], :voxels]
    return logits


def test_small_differences_pass() -> None:
    exact = ExactResult.of(winners())
    noise = np.random.default_rng(0).uniform(-0.05, 0.05, size=winners().shape)
    assert objection(exact, winners()) == ""
    assert objection(exact, winners() + noise) == ""
    assert "logits differ" in objection(exact, winners() + noise, SAME_PRECISION)  # rounding is smaller than that


def test_each_rule_objects_in_its_own_words() -> None:
    # 8 of 2000 voxels lost: Dice 2·1992/3992 = 0.99800, exactly at the limit; one more is beyond it.
    exact, loose = ExactResult.of(winners()), Tolerance(logit_difference=10)
    assert objection(exact, swapped(7), loose) == ""
    assert "Dice of label 0 falls by 0.0023" in objection(exact, swapped(9), loose)
    assert "labels agree on 99.33%" in objection(exact, swapped(40), Tolerance(dice_loss=1, logit_difference=10))
    assert "logits differ by up to" in objection(exact, winners() * 1.5)
    assert "not finite" in objection(exact, winners() * np.nan)
    assert "shape" in objection(exact, winners()[:, 1:])


def test_an_empty_label_never_passes() -> None:
    empty = winners()
    empty[2] = -5
    assert "0 voxels of label 2, fewer than 500" in objection(ExactResult.of(empty), empty)


def test_labels_are_those_the_prediction_decides() -> None:
    logits = np.random.default_rng(1).normal(size=(4, 9, 8, 7)).astype(np.float32)
    for activation, labels in (("softmax", 4), ("sigmoid", 5)):
        decision = LabelDecision(range(labels), activation)  # type: ignore[arg-type]
        expected = restore_labels(torch.from_numpy(logits), np.eye(4), np.eye(4), (9, 8, 7), decision)
        np.testing.assert_array_equal(decided(logits, activation), expected.numpy())  # type: ignore[arg-type]
        exact = ExactResult.of(logits, activation)  # type: ignore[arg-type]
        assert exact.voxels_a_label == expected.flatten().long().bincount(minlength=labels).tolist()


def test_kept_logits_are_few_and_cover_the_whole_tile() -> None:
    logits = np.random.default_rng(2).normal(size=(105, 40, 40, 40)).astype(np.float32)
    exact = ExactResult.of(logits)
    assert exact.logits.size <= 100_000
    assert np.diff(exact.positions).max() <= 64_000 / len(exact.positions) + 1
    np.testing.assert_array_equal(exact.logits, logits.reshape(105, -1)[:, exact.positions])
