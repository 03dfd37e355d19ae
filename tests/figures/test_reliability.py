"""Calibration bins against counting voxel by voxel, and the curves of reliability diagrams."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.figures import calibration_bins, reliability_diagram
from medseg.figures.canvas import OKABE_ITO

RANDOM = np.random.default_rng(0)
PROBABILITIES = RANDOM.random(5000) * 0.7  # the highest bins stay empty
BINS = calibration_bins(PROBABILITIES, RANDOM.random(5000) < PROBABILITIES**2, num_bins=10)


def test_the_curve_is_observed_frequency_over_predicted_probability() -> None:
    upper, lower = reliability_diagram(BINS).axes
    diagonal, curve = upper.get_lines()
    np.testing.assert_array_equal(diagonal.get_xydata(), [[0, 0], [1, 1]])
    assert len(curve.get_xdata()) == 7
    for k, (x, y) in enumerate(curve.get_xydata()):
        held = (k / 10 <= PROBABILITIES) & ((k + 1) / 10 > PROBABILITIES)
        np.testing.assert_allclose(x, PROBABILITIES[held].mean())
        np.testing.assert_allclose(y, BINS.outcome_sums[k] / held.sum())
    values, edges, _ = lower.patches[0].get_data()
    np.testing.assert_array_equal(values, np.histogram(PROBABILITIES, 10, (0, 1))[0])
    np.testing.assert_allclose(edges, np.linspace(0, 1, 11))
    assert f"ECE {BINS.expected_error:.3f}" in curve.get_label()


def test_each_class_has_its_colour(tmp_path: Path) -> None:
    figure = reliability_diagram({"front": BINS, "back": BINS + BINS})
    lines = figure.axes[0].get_lines()[1:]
    assert [line.get_color() for line in lines] == list(OKABE_ITO[:2])
    assert [text.get_text().split(":")[0] for text in figure.axes[0].get_legend().get_texts()] == ["front", "back"]
    path = reliability_diagram({"front": BINS}, path=tmp_path / "reliability.png")
    pixels = np.rint(matplotlib.image.imread(path)[..., :3] * 255).astype(int)
    assert (np.abs(pixels - (0xE6, 0x9F, 0x00)).max(-1) <= 2).sum() > 200


def test_nothing_to_draw_is_an_empty_diagram() -> None:
    empty = calibration_bins(np.zeros(0), np.zeros(0, bool))
    assert len(reliability_diagram(empty).axes[0].get_lines()[1].get_xdata()) == 0
    assert len(reliability_diagram({}).axes[0].get_lines()) == 1


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60), st.integers(1, 25))
def test_bins_equal_counting(voxels: list[tuple[float, bool]], num_bins: int) -> None:
    bins = calibration_bins(np.array([p for p, _ in voxels]), np.array([o for _, o in voxels]), num_bins)
    gap_sum, gaps = 0.0, []
    for k in range(num_bins):
        held = [(p, o) for p, o in voxels if k <= p * num_bins < k + 1 or (k == num_bins - 1 and p == 1)]
        assert bins.counts[k] == len(held)
        if not held:
            assert np.isnan(bins.frequency[k])
            continue
        promised, came_true = np.mean([p for p, _ in held]), np.mean([o for _, o in held])
        assert bins.mean_probability[k] == pytest.approx(promised)
        assert bins.frequency[k] == pytest.approx(came_true)
        gap_sum += abs(came_true - promised) * len(held)
        gaps.append(abs(came_true - promised))
    assert bins.expected_error == pytest.approx(gap_sum / len(voxels), abs=1e-12)
    assert bins.average_error == pytest.approx(np.mean(gaps), abs=1e-12)
    assert bins.brier_score == pytest.approx(np.mean([(p - o) ** 2 for p, o in voxels]), abs=1e-12)


def test_cases_add_up_to_all_their_voxels() -> None:
    random = np.random.default_rng(0)
    probabilities = random.random((3, 8, 9, 4))
    outcomes = random.random(probabilities.shape) < probabilities
    whole = calibration_bins(probabilities, outcomes)
    summed = calibration_bins(probabilities[0], outcomes[0])
    for p, o in zip(probabilities[1:], outcomes[1:], strict=True):
        summed = summed + calibration_bins(p, o)
    np.testing.assert_array_equal(summed.counts, whole.counts)
    np.testing.assert_allclose(summed.mean_probability, whole.mean_probability)
    assert summed.expected_error == pytest.approx(whole.expected_error)
    assert summed.brier_score == pytest.approx(whole.brier_score)


def test_errors_of_a_calibrated_and_of_a_wrong_certain_prediction() -> None:
    random = np.random.default_rng(1)
    probabilities = random.random(200_000)
    honest = calibration_bins(probabilities, random.random(200_000) < probabilities)
    assert honest.expected_error < 0.01
    assert honest.brier_score == pytest.approx(1 / 6, abs=2e-3)  # the mean of p(1 − p) over [0, 1]
    wrong = calibration_bins(np.array([0.0, 1.0]), np.array([True, False]))
    assert (wrong.expected_error, wrong.average_error, wrong.brier_score) == (1, 1, 1)


def test_errors_without_voxels_are_nan() -> None:
    empty = calibration_bins(np.zeros((0, 3)), np.zeros((0, 3), bool))
    assert empty.counts.sum() == 0
    assert np.isnan([empty.expected_error, empty.average_error, empty.brier_score]).all()


@pytest.mark.parametrize("value", [-0.1, 1.5, np.nan])
def test_values_outside_0_to_1_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match=rf"\[0, 1\], found {value}"):
        calibration_bins(np.array([0.5, value]), np.array([True, False]))


def test_mismatching_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2,\) and outcomes \(3,\)"):
        calibration_bins(np.zeros(2), np.zeros(3, bool))
    with pytest.raises(ValueError, match="num_bins must be at least 1"):
        calibration_bins(np.zeros(2), np.zeros(2, bool), num_bins=0)
    with pytest.raises(ValueError, match="found 4 and 5"):
        calibration_bins(np.zeros(2), np.zeros(2, bool), 4) + calibration_bins(np.zeros(2), np.zeros(2, bool), 5)
