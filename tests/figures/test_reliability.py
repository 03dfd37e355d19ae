"""Reliability diagrams: the curves that are drawn are the bins' own."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np

from medseg.figures import calibration_bins, reliability_diagram
from medseg.figures.canvas import OKABE_ITO

RANDOM = np.random.default_rng(0)
PROBABILITIES = RANDOM.random(5000) * 0.7  # the highest bins stay empty
BINS = calibration_bins(PROBABILITIES, RANDOM.random(5000) < PROBABILITIES**2, num_bins=10)


def test_the_curve_is_what_came_true_against_what_was_promised() -> None:
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
