"""The metrics of a case and label: their names, units, direction and what a one-sided empty mask counts as."""

from __future__ import annotations

import math
from dataclasses import dataclass
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
