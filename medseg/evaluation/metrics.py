"""The metrics of a case and label: their names, units, direction and what a one-sided empty mask counts as."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Better = Literal["higher", "lower", "nearer zero"]
OneEmpty = Literal["zero", "diagonal", "as computed"]


@dataclass(frozen=True)
class Metric:
    """One column of metrics.csv.

    Args:
        name: column name, its unit at the end where it has one.
        title: the field's name for it.
        unit: "" for a fraction.
        better: which direction is good.
        one_empty: what the metric counts as where exactly one of the two masks is empty.
    """

    name: str
    title: str
    unit: str
    better: Better
    one_empty: OneEmpty


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


def metrics_for(spatial_dims: int) -> tuple[Metric, ...]:
    """The metrics of 3D volumes, or of 2D images, where areas stand in for volumes."""
    size = (VOLUME_ML, VOLUME_PERCENT) if spatial_dims == 3 else (AREA_MM2, AREA_PERCENT)
    return (DICE, NSD, HD95, ASSD, *size, PRECISION, RECALL)
