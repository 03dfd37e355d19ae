"""What an empty mask counts as: declared once, applied everywhere.

Both masks empty: a correct absence, counted but not averaged. One mask empty: the worst value of every score (0, or the
image diagonal for distances), so that a missed structure can never leave the mean as a missing value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum

from medseg.evaluation.metrics import Metric

POLICY = (
    "both masks empty: correct absence, counted and not averaged; one mask empty: Dice, NSD, precision and recall 0, "
    "HD95 and ASSD the image diagonal in mm"
)


class Outcome(StrEnum):
    """What became of one structure of one case."""

    DETECTED = "detected"
    DISJOINT = "disjoint"
    MISSED = "missed"
    SPURIOUS = "spurious"
    ABSENT = "absent"


REASONS = {
    Outcome.DETECTED: "",
    Outcome.DISJOINT: "prediction and reference share no voxel",
    Outcome.MISSED: "prediction empty, reference not",
    Outcome.SPURIOUS: "reference empty, prediction not",
    Outcome.ABSENT: "both empty: correct absence, not averaged",
}


def outcome_of(reference_voxels: int, predicted_voxels: int, shared_voxels: int) -> Outcome:
    """Which outcome these voxel counts of one structure mean."""
    if reference_voxels and predicted_voxels:
        return Outcome.DETECTED if shared_voxels else Outcome.DISJOINT
    if reference_voxels:
        return Outcome.MISSED
    return Outcome.SPURIOUS if predicted_voxels else Outcome.ABSENT


def counted_values(
    raw: Mapping[str, float], metrics: Iterable[Metric], outcome: Outcome, diagonal_mm: float
) -> dict[str, float]:
    """The values that enter a mean, NaN for those that do not (see the policy above).

    Args:
        raw: each metric as computed; infinite or NaN where an empty mask leaves it undefined.
        metrics: which of them to count.
        outcome: what became of the structure.
        diagonal_mm: extent of the image from corner to corner, the largest distance it can hold.
    """
    if outcome is Outcome.ABSENT:
        return {metric.name: metric.absent for metric in metrics}
    if outcome in (Outcome.MISSED, Outcome.SPURIOUS):
        penalty = {"zero": 0.0, "one": 1.0, "diagonal": diagonal_mm}
        return {metric.name: penalty.get(metric.one_empty, raw[metric.name]) for metric in metrics}
    return {metric.name: raw[metric.name] for metric in metrics}


def image_diagonal_mm(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """√Σ(shape·spacing)²: from outer corner to outer corner, so no two surfaces in the image lie further apart."""
    return math.hypot(*(size * step for size, step in zip(shape, spacing, strict=True)))
