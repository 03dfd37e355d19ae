"""Whether probabilities saved beside the predictions mean what they say, and whether doubt points at bad cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy import ndimage, stats

from medseg.errors import MedsegError
from medseg.evaluation.overlap import bounding_box, union
from medseg.evaluation.pairs import Structures, read_pair, reorder
from medseg.figures import CalibrationBins, calibration_bins, reliability_diagram
from medseg.figures.canvas import inline_svg
from medseg.inference.saving import map_path
from medseg.reporting.sections import Html, section, signed, table, tag, with_code
from medseg.volumes import Grid, read_volume

REGION_MM = 10.0
COVERAGES = (1.0, 0.9, 0.75, 0.5)
# Entropy maps hold 0 (sure) to 255 (undecided).
_UNDECIDED = 255.0


@dataclass
class Calibration:
    """What the maps beside the predictions say.

    Args:
        bins: structure → voxels of all cases by probability, within 10 mm of reference or prediction.
        num_cases: structure → how many cases have a map.
        doubt: case → mean entropy within 10 mm of reference or prediction, 0 sure to 1 undecided.
        problems: case → why a map was not used.
    """

    bins: dict[str, CalibrationBins] = field(default_factory=dict)
    num_cases: dict[str, int] = field(default_factory=dict)
    doubt: dict[str, float] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


def measure_calibration(
    inputs: Sequence[Mapping[str, str]], structures: Structures, label_values: Mapping[str, Sequence[int]]
) -> Calibration:
    """Read `<prediction>_probability_<structure>` and `<prediction>_entropy` where they lie beside a prediction.

    Args:
        inputs: case, prediction and reference file of each case.
        structures: what the label files' values mean.
        label_values: the values of each structure.
    """
    found = Calibration()
    for entry in inputs:
        prediction_file = Path(entry["prediction"])
        maps = {name: map_path(prediction_file, f"probability_{name}") for name in label_values}
        maps = {name: path for name, path in maps.items() if path.is_file()}
        entropy = map_path(prediction_file, "entropy")
        if not maps and not entropy.is_file():
            continue
        pair, _ = read_pair(entry["case"], prediction_file, Path(entry["reference"]), structures)
        if pair is None:
            continue
        try:
            _add_case(found, entry["case"], pair, maps, entropy, label_values)
        except (MedsegError, ValueError) as error:
            found.problems[entry["case"]] = f"probabilities left out: {error}"
    return found


def risk_coverage(doubt: Mapping[str, float], dice: Mapping[str, float]) -> list[tuple[float, int, float]]:
    """Mean Dice of the most certain part of the cases that have one: (coverage, cases, mean Dice) each."""
    ranked = sorted((case for case in doubt if np.isfinite(dice.get(case, np.nan))), key=lambda case: doubt[case])
    rows = []
    for coverage in COVERAGES:
        kept = ranked[: max(round(coverage * len(ranked)), 1)]
        if kept:
            rows.append((coverage, len(kept), float(np.mean([dice[case] for case in kept]))))
    return rows


def rank_correlation(doubt: Mapping[str, float], dice: Mapping[str, float]) -> float:
    """Spearman's ρ between doubt and Dice; NaN below three cases or where either never changes."""
    cases = [case for case in doubt if np.isfinite(dice.get(case, np.nan))]
    first, second = [doubt[case] for case in cases], [dice[case] for case in cases]
    if len(cases) < 3 or len(set(first)) == 1 or len(set(second)) == 1:
        return float("nan")
    return float(stats.spearmanr(first, second).statistic)


def _add_case(
    found: Calibration,
    case: str,
    pair: tuple[np.ndarray, np.ndarray, Grid],
    maps: Mapping[str, Path],
    entropy: Path,
    label_values: Mapping[str, Sequence[int]],
) -> None:
    prediction, reference, grid = pair
    for name, path in maps.items():
        inside = [np.isin(labels, label_values[name]) for labels in (prediction, reference)]
        near = _near(inside[0] | inside[1], grid.spacing)
        probabilities = _read_on_grid(path, grid)
        bins = calibration_bins(probabilities[near], inside[1][near])
        found.bins[name] = found.bins[name] + bins if name in found.bins else bins
        found.num_cases[name] = found.num_cases.get(name, 0) + 1
    if entropy.is_file():
        known = [value for values in label_values.values() for value in values]
        near = _near(np.isin(prediction, known) | np.isin(reference, known), grid.spacing)
        undecided = _read_on_grid(entropy, grid)
        if near.any():
            found.doubt[case] = float(undecided[near].mean() / _UNDECIDED)


def _read_on_grid(path: Path, grid: Grid) -> np.ndarray:
    volume = read_volume(path)
    array, own_grid = reorder(volume.array, volume.grid, grid)
    if difference := own_grid.difference(grid):
        raise ValueError(f"{path}: {difference}")
    return array


def _near(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Everything within 10 mm of the mask's voxel centres; nothing for an empty mask."""
    tight = union(mask.ndim, [bounding_box(mask)])
    result = np.zeros(mask.shape, dtype=bool)
    if any(side.stop == side.start for side in tight):
        return result
    margins = [int(np.ceil(REGION_MM / step)) for step in spacing]
    box = tuple(
        slice(max(side.start - margin, 0), side.stop + margin) for side, margin in zip(tight, margins, strict=True)
    )
    result[box] = ndimage.distance_transform_edt(~mask[box], sampling=spacing) <= REGION_MM
    return result


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
