"""Names, units and directions of the metrics, and the policy for empty masks.

Every metric has a raw value, as computed, and a counted value, which enters the means. The two differ only if a mask is
empty (`EMPTY_MASK_POLICY`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

Better = Literal["higher", "lower", "nearer zero", "neither"]
OneEmpty = Literal["zero", "one", "diagonal", "as computed"]
Instances = Literal["components", "brats", "em"]

EMPTY_MASK_POLICY = (
    "both masks empty: correct absence, counted and not averaged; one mask empty: Dice, NSD, precision and recall 0, "
    "HD95 and ASSD the image diagonal in mm"
)


@dataclass(frozen=True)
class Metric:
    """One column of metrics.csv.

    Args:
        name: column name; ends with the unit if there is one.
        title: name shown to readers.
        unit: "" for a fraction or a count.
        better: which values are better.
        one_empty: counted value if exactly one of the two masks is empty.
        absent: counted value if both masks are empty; NaN leaves the case out of the means.
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
    Metric("false_positives", "false positives per case", "", "lower", "as computed", absent=0.0),
    Metric("rq", "RQ (F1 at IoU ≥ 0.5)", "", "higher", "zero"),
    Metric("sq", "SQ", "", "higher", "as computed"),
    Metric("pq", "PQ", "", "higher", "zero"),
    Metric("reference_objects", "reference objects", "", "neither", "as computed", absent=0.0),
    Metric("predicted_objects", "predicted objects", "", "neither", "as computed", absent=0.0),
)
# BraTS counts a correct absence as a perfect case, so these metrics do too.
BRATS_METRICS = (
    Metric("brats_dice", "BraTS lesion-wise Dice", "", "higher", "as computed", absent=1.0),
    Metric("brats_hd95_mm", "BraTS lesion-wise HD95", "mm", "lower", "as computed", absent=0.0),
    Metric("brats_reference_lesions", "lesions above 50 voxels", "", "neither", "as computed", absent=0.0),
    Metric("brats_missed_lesions", "missed lesions", "", "lower", "as computed", absent=0.0),
    Metric("brats_false_positives", "false positives per case", "", "lower", "as computed", absent=0.0),
)
EM_METRICS = (
    Metric("v_rand", "V_rand", "", "higher", "zero"),
    Metric("v_info", "V_info", "", "higher", "zero"),
    Metric("rand_error", "Rand error", "", "lower", "one"),
    Metric("pixel_error", "pixel error", "", "lower", "one"),
)
OBJECT_METRICS = tuple(metric.name for metric in (*COMPONENT_METRICS, *BRATS_METRICS, *EM_METRICS))


def metrics_for(spatial_dims: int, instances: Instances | None = None) -> tuple[Metric, ...]:
    """Return the metrics of 3D volumes or of 2D images, which have areas instead of volumes.

    Args:
        spatial_dims: 2 or 3.
        instances: a set of object metrics to append.
    """
    size = (VOLUME_ML, VOLUME_PERCENT) if spatial_dims == 3 else (AREA_MM2, AREA_PERCENT)
    extra = {None: (), "components": COMPONENT_METRICS, "brats": BRATS_METRICS, "em": EM_METRICS}[instances]
    return (DICE, NSD, HD95, ASSD, *size, PRECISION, RECALL, *extra)


class Outcome(StrEnum):
    """Result of looking for one structure in one case."""

    DETECTED = "detected"
    DISJOINT = "disjoint"
    MISSED = "missed"
    SPURIOUS = "spurious"
    ABSENT = "absent"
    UNKNOWN = "unknown"


REASONS = {
    Outcome.DETECTED: "",
    Outcome.DISJOINT: "prediction and reference share no voxel",
    Outcome.MISSED: "prediction empty, reference not",
    Outcome.SPURIOUS: "reference empty, prediction not",
    Outcome.ABSENT: "both empty: correct absence, not averaged",
    Outcome.UNKNOWN: "not annotated in this case, not averaged",
}


def outcome_of(reference_voxels: int, predicted_voxels: int, shared_voxels: int) -> Outcome:
    """Return the outcome that belongs to these voxel counts of one structure."""
    if reference_voxels and predicted_voxels:
        return Outcome.DETECTED if shared_voxels else Outcome.DISJOINT
    if reference_voxels:
        return Outcome.MISSED
    return Outcome.SPURIOUS if predicted_voxels else Outcome.ABSENT


def counted_values(
    raw: Mapping[str, float], metrics: Iterable[Metric], outcome: Outcome, diagonal_mm: float
) -> dict[str, float]:
    """Apply `EMPTY_MASK_POLICY` to the raw values of one structure of one case.

    Args:
        raw: value of each metric as computed; infinite or NaN if an empty mask leaves it undefined.
        metrics: the metrics to count.
        outcome: outcome of the structure.
        diagonal_mm: length of the image diagonal in mm, see `image_diagonal_mm`.

    Returns:
        The values that enter the means by metric name; NaN does not enter.
    """
    if outcome is Outcome.ABSENT:
        return {metric.name: metric.absent for metric in metrics}
    if outcome in (Outcome.MISSED, Outcome.SPURIOUS):
        penalty = {"zero": 0.0, "one": 1.0, "diagonal": diagonal_mm}
        return {metric.name: penalty.get(metric.one_empty, raw[metric.name]) for metric in metrics}
    return {metric.name: raw[metric.name] for metric in metrics}


def image_diagonal_mm(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """Return √Σ(shape·spacing)², the distance between opposite outer corners, in mm.

    No two surfaces in the image lie further apart, so a missed structure never scores better than a wrong prediction.
    """
    return math.hypot(*(size * step for size, step in zip(shape, spacing, strict=True)))
