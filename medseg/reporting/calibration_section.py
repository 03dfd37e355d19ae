"""The page's calibration part: errors as a table, the diagram, and what doubt is worth."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from medseg.figures.label_colors import label_color
from medseg.reporting.calibration import REGION_MM, Calibration, rank_correlation, risk_coverage
from medseg.reporting.markup import Html, section, table, tag, with_code

SIZE = 260
_EDGE = 34


def calibration_section(calibration: Calibration, dice: Mapping[str, float]) -> Html:
    """Calibration of each structure with a map, and uncertainty against Dice.

    Args:
        calibration: what was measured.
        dice: case → mean Dice; NaN where none counts.
    """
    title = "Calibration"
    if not calibration.bins and not calibration.doubt:
        words = (
            "Left out: no probabilities lie beside the predictions. "
            "`medseg predict --save-probabilities --uncertainty` writes them."
        )
        return section("calibration", title, tag("p", with_code(words), class_="soft"))
    parts: list[Html] = []
    if calibration.bins:
        head = ["structure", "ECE", "ACE", "Brier", "voxels", "cases"]
        rows = [
            [name, *(f"{value:.4f}" for value in (bins.expected_error, bins.average_error, bins.brier_score)),
             f"{int(bins.counts.sum()):,}", calibration.num_cases[name]]
            for name, bins in calibration.bins.items()
        ]  # fmt: skip
        about = f"Voxels within {REGION_MM:g} mm of reference or prediction, 20 bins of probability"
        parts += [table(about, head, rows), _diagram(calibration)]
    if calibration.doubt:
        correlation = rank_correlation(calibration.doubt, dice)
        spearman = "" if math.isnan(correlation) else f"; Spearman's ρ of entropy and Dice {correlation:.2f}"
        rows = [[f"{coverage:.0%}", n, f"{mean:.3f}"] for coverage, n, mean in risk_coverage(calibration.doubt, dice)]
        about = f"Risk and coverage: mean Dice of the cases with the lowest mean entropy{spearman}"
        parts.append(table(about, ["most certain", "cases", "mean Dice"], rows))
    return section("calibration", title, *parts)


def _diagram(calibration: Calibration) -> Html:
    """Frequency over probability, a line a structure; on the diagonal probabilities mean what they say."""

    def place(x: float, y: float) -> str:
        return f"{_EDGE + x * SIZE:.1f},{8 + (1 - y) * SIZE:.1f}"

    lines = [tag("polyline", points=f"{place(0, 0)} {place(1, 1)}", class_="grid-line", fill="none")]
    shown = list(calibration.bins.items())[:7]
    for number, (name, bins) in enumerate(shown):
        points = [
            place(x, y) for x, y in zip(bins.mean_probability, bins.frequency, strict=True) if not np.isnan(x + y)
        ]
        line = tag("polyline", tag("title", name), points=" ".join(points), fill="none", stroke=label_color(number))
        lines.append(line)
    corners = ((0, 0, "0", "end"), (1, 0, "1", "middle"), (0, 1, "1", "end"))
    for x, y, words, anchor in corners:
        column, row = place(x, y).split(",")
        shift = (-6, 4) if anchor == "end" else (0, 16)
        lines.append(tag("text", words, x=float(column) + shift[0], y=float(row) + shift[1], text_anchor=anchor))
    lines.append(tag("text", "probability", x=_EDGE + SIZE / 2, y=SIZE + 24, text_anchor="middle"))
    lines.append(tag("text", "frequency", x=_EDGE + 6, y=18))
    errors = ", ".join(f"{name} ECE {bins.expected_error:.3f}" for name, bins in shown)
    svg = tag("svg", *lines, class_="diagram", viewBox=f"0 0 {SIZE + _EDGE + 12} {SIZE + 32}", role="img",
              aria_label=f"Reliability diagram, frequency over probability: {errors}")  # fmt: skip
    keys = [
        tag("li", tag("span", "●", style=f"color: {label_color(number)}", aria_hidden="true"), f" {name}")
        for number, (name, _) in enumerate(shown)
    ]
    return tag("div", svg, tag("ul", *keys, class_="badges"))
