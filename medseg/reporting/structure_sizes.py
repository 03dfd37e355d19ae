"""Measure the structures of predicted cases, and tell which are unusual."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medseg.errors import MedsegError, one_line
from medseg.inference import CaseResult
from medseg.inference.plausibility import Fingerprint
from medseg.volumes import read_grid

# A volume is far from the others at this many robust standard deviations of its logarithm (1.4826 times the median
# absolute deviation), if there are enough others: Iglewicz and Hoaglin 1993.
ROBUST_DEVIATIONS, MIN_CASES = 3.5, 8
ABSENT, ABSENT_UNLIKE_TRAINING = "absent", "absent, never so in training"
BELOW, ABOVE, FAR = "below training", "above training", "far from the others"
USUAL = "usual"
UNUSUAL = (ABSENT_UNLIKE_TRAINING, BELOW, ABOVE, FAR)


@dataclass(frozen=True)
class Quantity:
    """Describe what the page shows for a structure: its volume, or for a 2D image the share of its area."""

    name: str
    plural: str
    unit: str

    def text(self, value: float) -> str:
        """Format a value without its unit."""
        return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


VOLUME, SHARE = Quantity("volume", "volumes", "ml"), Quantity("share of the image", "shares of the image", "%")


@dataclass(frozen=True, eq=False)
class Sizes:
    """Sizes of the structures in all cases.

    Args:
        values: (cases, structures); NaN for failed scans.
        outcomes: what is unusual about each value, or "usual".
        medians: of these cases, where a structure is present.
        training: smallest and largest value in training by structure, if they are known.
    """

    values: np.ndarray
    outcomes: list[list[str]]
    medians: np.ndarray
    training: Mapping[str, tuple[float, float]]

    def strangeness(self, case: int) -> float:
        """Return how far a case is from the medians at most, as a factor's logarithm; absent structures count most."""
        present = self.values[case] > 0
        if not present.all():
            return math.inf
        return float(np.abs(np.log(self.values[case] / self.medians)).max(initial=0.0))


def measure_sizes(
    results: Sequence[CaseResult],
    labels: Sequence[str],
    fingerprint: Fingerprint | None,
    *,
    is_share: bool,
    problems: dict[str, str],
) -> Sizes:
    """Collect the sizes of all structures and call the unusual ones so.

    Args:
        results: of the cases.
        labels: names of the structures.
        fingerprint: of the training cases.
        is_share: return shares of the image in % instead of volumes in ml.
        problems: gets a line for each case whose segmentation cannot be read.
    """
    values = np.full((len(results), len(labels)), np.nan)
    for i, result in enumerate(results):
        if result.status == "failed":
            continue
        factor = 1.0
        if is_share:
            try:
                grid = read_grid(result.output)
            except (MedsegError, OSError) as error:
                problems[result.case] = f"no numbers: {one_line(error)}"
                continue
            factor = 100 * 1000 / (grid.voxel_volume_mm3 * math.prod(grid.shape))
        values[i] = [factor * result.volumes_ml.get(label, math.nan) for label in labels]
    present = np.where(values > 0, values, np.nan)
    logs = np.log(present)
    medians, deviations = np.ones(len(labels)), np.full(len(labels), np.inf)
    for k in range(len(labels)):
        column = logs[np.isfinite(logs[:, k]), k]
        if len(column):
            medians[k] = math.exp(np.median(column))
        if len(column) >= MIN_CASES:
            deviations[k] = 1.4826 * np.median(np.abs(column - np.median(column))) or np.inf
    known = {} if fingerprint is None else fingerprint.labels
    training = {}
    for name in labels:
        if name in known and (quantiles := known[name].share if is_share else known[name].volume_ml):
            scale = 100 if is_share else 1
            training[name] = (scale * quantiles["smallest"], scale * quantiles["largest"])

    def outcome(value: float, k: int) -> str:
        name = labels[k]
        if not value > 0:
            return ABSENT_UNLIKE_TRAINING if name in known and known[name].absent == 0 else ABSENT
        if name in training and not training[name][0] <= value <= training[name][1]:
            return BELOW if value < training[name][0] else ABOVE
        is_far = abs(math.log(value / medians[k])) > ROBUST_DEVIATIONS * deviations[k]
        return FAR if is_far else USUAL

    outcomes = [[outcome(value, k) for k, value in enumerate(row)] for row in values]
    return Sizes(values, outcomes, medians, training)
