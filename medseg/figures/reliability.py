"""Calibration of probabilities in bins, and reliability diagrams."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medseg.figures.canvas import label_color, new_figure, save_png

NUM_BINS = 20


@dataclass(frozen=True, eq=False)
class CalibrationBins:
    """Voxels counted by predicted probability in bins of equal width; bins of several cases add up with `+`.

    Bin k of n holds probabilities in [k/n, (k+1)/n), the last one 1 as well.

    Args:
        counts: number of voxels per bin.
        probability_sums: sum of the probabilities per bin.
        outcome_sums: number of voxels per bin that belong to the class.
        squared_error: sum of (probability − outcome)² over all voxels.
    """

    counts: np.ndarray
    probability_sums: np.ndarray
    outcome_sums: np.ndarray
    squared_error: float

    def __add__(self, other: CalibrationBins) -> CalibrationBins:
        if len(self.counts) != len(other.counts):
            raise ValueError(
                f"bins can only be added if their number is equal, found {len(self.counts)} and {len(other.counts)}"
            )
        return CalibrationBins(
            self.counts + other.counts,
            self.probability_sums + other.probability_sums,
            self.outcome_sums + other.outcome_sums,
            self.squared_error + other.squared_error,
        )

    @property
    def mean_probability(self) -> np.ndarray:
        """Mean predicted probability per bin; NaN for an empty bin."""
        return self._per_voxel(self.probability_sums)

    @property
    def frequency(self) -> np.ndarray:
        """Share of voxels that belong to the class per bin; NaN for an empty bin."""
        return self._per_voxel(self.outcome_sums)

    @property
    def expected_error(self) -> float:
        """ECE: mean |frequency − probability| over voxels (Naeini et al. 2015); NaN without voxels."""
        gaps = np.abs(self.outcome_sums - self.probability_sums)
        return float(gaps.sum() / self.counts.sum()) if self.counts.sum() else float("nan")

    @property
    def average_error(self) -> float:
        """ACE: mean |frequency − probability| over the bins with voxels (Neumann et al. 2018); NaN without voxels."""
        gaps = np.abs(self.frequency - self.mean_probability)[self.counts > 0]
        return float(gaps.mean()) if len(gaps) else float("nan")

    @property
    def brier_score(self) -> float:
        """Mean (probability − outcome)² over voxels; NaN without voxels."""
        return self.squared_error / float(self.counts.sum()) if self.counts.sum() else float("nan")

    def _per_voxel(self, sums: np.ndarray) -> np.ndarray:
        return np.divide(sums, self.counts, out=np.full(len(sums), np.nan), where=self.counts > 0)


def calibration_bins(probabilities: np.ndarray, outcomes: np.ndarray, num_bins: int = NUM_BINS) -> CalibrationBins:
    """Count voxels, and those that belong to the class, by predicted probability.

    Args:
        probabilities: in [0, 1], any shape.
        outcomes: booleans of the same shape; True if the voxel belongs to the class.
        num_bins: number of bins, at least 1.

    Raises:
        ValueError: the shapes differ, a probability is outside [0, 1] or not a number, or there is no bin.
    """
    flat = np.asarray(probabilities, dtype=np.float64).ravel()
    true = np.asarray(outcomes, dtype=bool).ravel()
    if np.shape(probabilities) != np.shape(outcomes):
        raise ValueError(f"probabilities {np.shape(probabilities)} and outcomes {np.shape(outcomes)} differ in shape")
    if num_bins < 1:
        raise ValueError(f"num_bins must be at least 1, found {num_bins}")
    wrong = ~((flat >= 0) & (flat <= 1))
    if wrong.any():
        raise ValueError(f"probabilities must lie in [0, 1], found {flat[wrong][0]}")
    bins = np.minimum((flat * num_bins).astype(np.int64), num_bins - 1)
    counts, probability_sums, outcome_sums = (
        np.bincount(bins, weights=weights, minlength=num_bins) for weights in (None, flat, true.astype(float))
    )
    return CalibrationBins(counts, probability_sums, outcome_sums, float(((flat - true) ** 2).sum()))


def reliability_diagram(
    bins: CalibrationBins | Mapping[str, CalibrationBins], path: str | Path | None = None, title: str = "Reliability"
) -> Any:
    """Draw the observed frequency over the predicted probability, and below it the number of voxels.

    A curve on the diagonal is calibrated; below the diagonal the network is overconfident. Empty bins are left out.

    Args:
        bins: bins of one class, or of several classes by name.
        path: PNG file to write atomically.
        title: title of the diagram.

    Returns:
        The matplotlib figure, or the path if one was given.

    Raises:
        ImportError: matplotlib is not installed.
    """
    curves = {"": bins} if isinstance(bins, CalibrationBins) else bins
    figure = new_figure(4.8, 6.0)
    figure.set_layout_engine("constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color="#777777", linewidth=1, linestyle="--", label="_calibrated")
    for position, (name, curve) in enumerate(curves.items()):
        held = curve.counts > 0
        color = label_color(position)
        numbers = f"ECE {curve.expected_error:.3f}, ACE {curve.average_error:.3f}, Brier {curve.brier_score:.3f}"
        label = f"{name}: {numbers}" if name else numbers
        upper.plot(
            curve.mean_probability[held], curve.frequency[held], color=color, marker="o", markersize=4, label=label
        )
        lower.stairs(curve.counts, [k / len(held) for k in range(len(held) + 1)], color=color)
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="observed frequency", title=title)
    lower.set(xlabel="predicted probability", ylabel="voxels")
    # Linear below one voxel, because the logarithm of an empty bin does not exist.
    lower.set_yscale("symlog", linthresh=1)
    lower.set_ylim(0, 2 * max([1.0, *(float(curve.counts.max(initial=0)) for curve in curves.values())]))
    if curves:
        upper.legend(loc="upper left", fontsize=8, frameon=False)
    return figure if path is None else save_png(figure, path)
