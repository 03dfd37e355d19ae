"""Calibration of the probabilities saved beside predictions, and uncertainty against Dice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy import ndimage

from medseg.errors import MedsegError
from medseg.evaluation.overlap import bounding_box, union
from medseg.evaluation.pairs import Structures, read_pair
from medseg.figures import CalibrationBins, calibration_bins, reliability_diagram
from medseg.figures.canvas import inline_svg
from medseg.volumes import Grid, read_volume, reorder
from medseg.volumes.result_files import map_path

# Calibration is measured within this distance of reference or prediction; further away all is certain background.
REGION_MM = 10.0
COVERAGES = (1.0, 0.9, 0.75, 0.5)
# Entropy maps hold 0 (certain) to 255 (undecided).
MAX_ENTROPY = 255.0
# As many curves as there are colours that everybody can distinguish.
MAX_CURVES = 7


@dataclass
class Calibration:
    """Calibration and uncertainty, measured from the maps beside the predictions.

    Args:
        bins: structure → voxels of all cases by probability, within 10 mm of reference or prediction.
        num_cases: structure → number of cases with a map.
        uncertainty: case → mean entropy within 10 mm of reference or prediction, 0 (certain) to 1 (undecided).
        problems: case → why a map was not used.
    """

    bins: dict[str, CalibrationBins] = field(default_factory=dict)
    num_cases: dict[str, int] = field(default_factory=dict)
    uncertainty: dict[str, float] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Coverage:
    """Mean Dice of the most certain part of the cases.

    Args:
        coverage: share of the cases.
        num_cases: number of cases.
        mean_dice: their mean Dice.
    """

    coverage: float
    num_cases: int
    mean_dice: float


@dataclass(frozen=True)
class Diagram:
    """The reliability diagram as it stands on the page.

    Args:
        svg: an `svg` element; empty if it could not be drawn.
        problem: why it could not be drawn.
        num_shown: number of curves.
        num_omitted: number of structures without a curve.
    """

    svg: str = ""
    problem: str = ""
    num_shown: int = 0
    num_omitted: int = 0


def measure_calibration(
    inputs: Sequence[Mapping[str, str]], structures: Structures, label_values: Mapping[str, Sequence[int]]
) -> Calibration:
    """Read `<prediction>_probability_<structure>` and `<prediction>_entropy` beside each prediction, if they exist.

    Args:
        inputs: case, prediction file and reference file of each case.
        structures: the meaning of the values in the label files.
        label_values: the label values of each structure.
    """
    calibration = Calibration()
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
            _add_case(calibration, entry["case"], pair, maps, entropy, label_values)
        except (MedsegError, ValueError) as error:
            calibration.problems[entry["case"]] = f"probabilities left out: {error}"
    return calibration


def risk_coverage(uncertainty: Mapping[str, float], dice: Mapping[str, float]) -> list[Coverage]:
    """Compute the mean Dice of the most certain 100, 90, 75 and 50 % of the cases that have a Dice.

    Args:
        uncertainty: case → mean entropy.
        dice: case → mean Dice; NaN if no structure counts.
    """
    ranked = sorted(_with_dice(uncertainty, dice), key=lambda case: uncertainty[case])
    rows = []
    for coverage in COVERAGES:
        kept = ranked[: max(round(coverage * len(ranked)), 1)]
        if kept:
            rows.append(Coverage(coverage, len(kept), float(np.mean([dice[case] for case in kept]))))
    return rows


def rank_correlation(uncertainty: Mapping[str, float], dice: Mapping[str, float]) -> float:
    """Compute Spearman's ρ of uncertainty and Dice; NaN below three cases or if either is constant."""
    cases = _with_dice(uncertainty, dice)
    first, second = [uncertainty[case] for case in cases], [dice[case] for case in cases]
    if len(cases) < 3 or len(set(first)) == 1 or len(set(second)) == 1:
        return float("nan")
    from scipy.stats import spearmanr  # takes half a second to import

    return float(spearmanr(first, second).statistic)


def draw_diagram(calibration: Calibration) -> Diagram:
    """Draw the reliability diagram of the structures with the largest ECE, on the page's own background."""
    worst = sorted(calibration.bins, key=lambda name: -calibration.bins[name].expected_error)[:MAX_CURVES]
    shown = {name: bins for name, bins in calibration.bins.items() if name in worst}
    if not shown:
        return Diagram()
    try:
        figure = reliability_diagram(shown)
    except ImportError as error:
        return Diagram(problem=str(error))
    errors = ", ".join(f"{name} ECE {bins.expected_error:.3f}" for name, bins in shown.items())
    svg = inline_svg(figure, "reliability", "Reliability diagram", f"Frequency over probability: {errors}.")
    return Diagram(svg, "", len(shown), len(calibration.bins) - len(shown))


def _with_dice(uncertainty: Mapping[str, float], dice: Mapping[str, float]) -> list[str]:
    return [case for case in uncertainty if np.isfinite(dice.get(case, np.nan))]


def _add_case(
    calibration: Calibration,
    case: str,
    pair: tuple[np.ndarray, np.ndarray, Grid],
    maps: Mapping[str, Path],
    entropy: Path,
    label_values: Mapping[str, Sequence[int]],
) -> None:
    """Add the voxels of one case to the bins."""
    prediction, reference, grid = pair
    for name, path in maps.items():
        predicted_mask, reference_mask = (np.isin(labels, label_values[name]) for labels in (prediction, reference))
        near = _near(predicted_mask | reference_mask, grid.spacing)
        bins = calibration_bins(_read_on_grid(path, grid)[near], reference_mask[near])
        calibration.bins[name] = calibration.bins[name] + bins if name in calibration.bins else bins
        calibration.num_cases[name] = calibration.num_cases.get(name, 0) + 1
    if entropy.is_file():
        known = [value for values in label_values.values() for value in values]
        near = _near(np.isin(prediction, known) | np.isin(reference, known), grid.spacing)
        values = _read_on_grid(entropy, grid)
        if near.any():
            calibration.uncertainty[case] = float(values[near].mean() / MAX_ENTROPY)


def _read_on_grid(path: Path, grid: Grid) -> np.ndarray:
    volume = read_volume(path)
    array, own_grid = reorder(volume.array, volume.grid, grid)
    if difference := own_grid.difference(grid):
        raise ValueError(f"{path}: {difference}")
    return array


def _near(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Return True within 10 mm of the voxel centres of a mask; nowhere for an empty mask."""
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
