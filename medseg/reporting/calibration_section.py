"""The page's calibration part: errors as a table, the diagram, and what doubt is worth."""

from __future__ import annotations

import math
from collections.abc import Mapping

from medseg.figures import reliability_diagram
from medseg.figures.inline_svg import inline_svg
from medseg.reporting.calibration import REGION_MM, Calibration, rank_correlation, risk_coverage
from medseg.reporting.markup import Html, section, signed, table, tag, with_code

# As many as there are colours that everybody can tell apart.
MOST_CURVES = 7


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
    if not calibration.bins:
        return section("calibration", title, *_risk_coverage(calibration, dice))
    head = ["structure", "ECE", "ACE", "Brier", "voxels", "cases"]
    rows = [
        [name, *(f"{value:.4f}" for value in (bins.expected_error, bins.average_error, bins.brier_score)),
         f"{int(bins.counts.sum()):,}", calibration.num_cases[name]]
        for name, bins in calibration.bins.items()
    ]  # fmt: skip
    about = f"Voxels within {REGION_MM:g} mm of reference or prediction, 20 bins of probability"
    words = (
        "On the dashed diagonal a probability means what it says; below it the network is too sure of itself. ECE "
        "weighs each bin by its voxels, ACE counts every bin the same; 0 is perfect for all three."
    )
    numbers = [table(about, head, rows), tag("p", words, class_="soft"), *_risk_coverage(calibration, dice)]
    return section("calibration", title, tag("div", tag("div", *numbers), _diagram(calibration), class_="beside"))


def _risk_coverage(calibration: Calibration, dice: Mapping[str, float]) -> list[Html]:
    """Whether the cases with the least doubt are the better ones; nothing without entropy maps."""
    if not calibration.doubt:
        return []
    correlation = rank_correlation(calibration.doubt, dice)
    spearman = "" if math.isnan(correlation) else f"; Spearman's ρ of entropy and Dice {signed(correlation, 2)}"
    rows = [[f"{100 * share:.0f} %", n, f"{mean:.3f}"] for share, n, mean in risk_coverage(calibration.doubt, dice)]
    about = f"Risk and coverage: mean Dice of the cases with the lowest mean entropy{spearman}"
    return [table(about, ["most certain", "cases", "mean Dice"], rows)]


def _diagram(calibration: Calibration) -> Html:
    """`medseg.figures.reliability_diagram` of the worst structures, on the page's own background."""
    worst = sorted(calibration.bins, key=lambda name: -calibration.bins[name].expected_error)[:MOST_CURVES]
    shown = {name: bins for name, bins in calibration.bins.items() if name in worst}
    try:
        figure = reliability_diagram(shown)
    except ImportError as error:
        return tag("p", f"Reliability diagram left out: {error}.", class_="soft")
    errors = ", ".join(f"{name} ECE {bins.expected_error:.3f}" for name, bins in shown.items())
    drawn = inline_svg(figure, "reliability", "Reliability diagram", f"Frequency over probability: {errors}.")
    left_out = len(calibration.bins) - len(shown)
    note = f"The {MOST_CURVES} structures with the largest ECE; {left_out} more in the table." if left_out else ""
    return tag("div", Html(drawn), tag("p", note, class_="soft") if note else "", class_="diagram")
