"""The metrics of a case and label: their names, units, direction and what a one-sided empty mask counts as."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

Better = Literal["higher", "lower", "nearer zero", "neither"]
OneEmpty = Literal["zero", "one", "diagonal", "as computed"]
Instances = Literal["components", "brats", "em"]


@dataclass(frozen=True)
class Metric:
    """One column of metrics.csv.

    Args:
        name: column name, its unit at the end where it has one.
        title: the field's name for it.
        unit: "" for a fraction.
        better: which direction is good.
        one_empty: what the metric counts as where exactly one of the two masks is empty.
        absent: what it counts as where both are; NaN leaves the case out of its means.
    """

    name: str
    title: str
    unit: str
    better: Better
    one_empty: OneEmpty
    absent: float = math.nan


DICE = Metric("dice", "Dice", "", "higher", "zero")
NSD = Metric("nsd", "NSD", "", "higher", "zero")
HD95 = Metric("hd95_mm", "HD95", "mm", "lower", "diagonal")
ASSD = Metric("assd_mm", "ASSD", "mm", "lower", "diagonal")
PRECISION = Metric("precision", "precision", "", "higher", "zero")
RECALL = Metric("recall", "recall", "", "higher", "zero")
VOLUME_ML = Metric("volume_difference_ml", "volume difference", "ml", "nearer zero", "as computed")
VOLUME_PERCENT = Metric("volume_difference_percent", "volume difference", "%", "nearer zero", "as computed")
AREA_MM2 = Metric("area_difference_mm2", "area difference", "mm²", "nearer zero", "as computed")
AREA_PERCENT = Metric("area_difference_percent", "area difference", "%", "nearer zero", "as computed")


COMPONENT_METRICS = (
    Metric("object_f1", "F1 at any overlap", "", "higher", "zero"),
    Metric("object_sensitivity", "object sensitivity", "", "higher", "as computed"),
    Metric("false_positives", "false positives a case", "", "lower", "as computed", absent=0.0),
    Metric("rq", "RQ (F1 at IoU ≥ 0.5)", "", "higher", "zero"),
    Metric("sq", "SQ", "", "higher", "as computed"),
    Metric("pq", "PQ", "", "higher", "zero"),
    Metric("reference_objects", "reference objects", "", "neither", "as computed", absent=0.0),
    Metric("predicted_objects", "predicted objects", "", "neither", "as computed", absent=0.0),
)
# The challenge counts a correct absence as a perfect case; its preset does too.
BRATS_METRICS = (
    Metric("brats_dice", "BraTS lesion-wise Dice", "", "higher", "as computed", absent=1.0),
    Metric("brats_hd95_mm", "BraTS lesion-wise HD95", "mm", "lower", "as computed", absent=0.0),
    Metric("brats_reference_lesions", "lesions above 50 voxels", "", "neither", "as computed", absent=0.0),
    Metric("brats_missed_lesions", "missed lesions", "", "lower", "as computed", absent=0.0),
    Metric("brats_false_positives", "false positives a case", "", "lower", "as computed", absent=0.0),
)
EM_METRICS = (
    Metric("v_rand", "V_rand", "", "higher", "zero"),
    Metric("v_info", "V_info", "", "higher", "zero"),
    Metric("rand_error", "Rand error", "", "lower", "one"),
    Metric("pixel_error", "pixel error", "", "lower", "one"),
)


def metrics_for(spatial_dims: int, instances: Instances | None = None) -> tuple[Metric, ...]:
    """The metrics of 3D volumes, or of 2D images, where areas stand in for volumes, with those of a set of objects."""
    size = (VOLUME_ML, VOLUME_PERCENT) if spatial_dims == 3 else (AREA_MM2, AREA_PERCENT)
    extra = {None: (), "components": COMPONENT_METRICS, "brats": BRATS_METRICS, "em": EM_METRICS}[instances]
    return (DICE, NSD, HD95, ASSD, *size, PRECISION, RECALL, *extra)


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
