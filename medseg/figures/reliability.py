"""Reliability diagrams: does what is predicted with 80 % come true eight times in ten?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medseg.figures.calibration import CalibrationBins
from medseg.figures.canvas import new_figure, save_png
from medseg.figures.label_colors import label_color


def reliability_diagram(
    bins: CalibrationBins | Mapping[str, CalibrationBins], path: str | Path | None = None, title: str = "Reliability"
) -> Any:
    """Draw how often predicted probabilities came true, above how many voxels there were.

    A curve on the diagonal is calibrated; below it the network is too sure of itself. Bins without voxels are left out.

    Args:
        bins: of one class, or of several by name.
        path: where to save a PNG, whole or not at all.
        title: one line above the diagram.

    Returns:
        The matplotlib figure, or the path where one was given.

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
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="share that came true", title=title)
    lower.set(xlabel="predicted probability", ylabel="voxels")
    # linear below one voxel: empty bins have no logarithm
    lower.set_yscale("symlog", linthresh=1)
    lower.set_ylim(0, 2 * max([1.0, *(float(curve.counts.max(initial=0)) for curve in curves.values())]))
    if curves:
        upper.legend(loc="upper left", fontsize=8, frameon=False)
    return figure if path is None else save_png(figure, path)
