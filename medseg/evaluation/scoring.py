"""All metrics of one case, one row per structure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from medseg.errors import EvaluationError
from medseg.evaluation.challenges.brats import brats_score
from medseg.evaluation.challenges.em import em_score
from medseg.evaluation.instances import InstanceScore, connected_components, instance_score
from medseg.evaluation.metrics import (
    EM_METRICS,
    REASONS,
    Instances,
    Outcome,
    counted_values,
    image_diagonal_mm,
    metrics_for,
    outcome_of,
)
from medseg.evaluation.overlap import (
    Confusion,
    LabelBoxes,
    confusion,
    dice,
    label_regions,
    precision,
    recall,
    size_difference,
    union,
)
from medseg.evaluation.surface import surface_distances

DEFAULT_TOLERANCE_MM = 1.0
Tolerance = float | Mapping[str, float]


@dataclass(frozen=True)
class LabelScore:
    """Metrics of one structure of one case: a row of metrics.csv.

    Args:
        case: case id.
        patient: patient id; cases of one patient are resampled together.
        label: name of the structure.
        outcome: detected, disjoint, missed, spurious or absent.
        reason: why a counted value differs from the raw one or does not count.
        reference_voxels, predicted_voxels: sizes of the two masks in voxels.
        reference_size, predicted_size: the same in ml (3D) or mm² (2D).
        values: counted values by metric name, which enter the means; NaN does not enter.
        raw: values as computed; infinite or NaN if an empty mask leaves them undefined.
        objects: the matched objects if `instances` is "components".
    """

    case: str
    patient: str
    label: str
    outcome: Outcome
    reason: str
    reference_voxels: int
    predicted_voxels: int
    reference_size: float
    predicted_size: float
    values: dict[str, float] = field(default_factory=dict)
    raw: dict[str, float] = field(default_factory=dict)
    objects: InstanceScore | None = None


def score_case(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float],
    labels: Mapping[str, int | Sequence[int]],
    *,
    case: str = "",
    patient: str = "",
    tolerance_mm: Tolerance = DEFAULT_TOLERANCE_MM,
    instances: Instances | None = None,
    counts: Confusion | None = None,
) -> list[LabelScore]:
    """Compute Dice, NSD, HD95, ASSD, size difference, precision and recall of every structure of one case.

    Args:
        prediction: integer label map, shape (i, j) or (i, j, k). A volume with exactly one axis of length 1 is one
            slice and is measured in 2D.
        reference: integer label map of the same shape.
        spacing: voxel size along each axis, in mm.
        labels: the value of each structure, or the values whose union it is.
        case, patient: ids written into the rows; the patient defaults to the case.
        tolerance_mm: tolerance of the NSD in mm; one number, or one per structure.
        instances: a set of object metrics to add: "components" (F1, sensitivity, false positives, RQ, SQ, PQ),
            "brats" or "em".
        counts: `confusion(prediction, reference)`, if it is known already.

    Returns:
        One row per structure, in the order of `labels`. `EMPTY_MASK_POLICY` says how empty masks count.

    Raises:
        EvaluationError: shapes, spacing, labels or tolerance that cannot be used.
    """
    regions = label_regions(labels)
    tolerances = tolerance_per_label(tolerance_mm, regions)
    counts = counts or confusion(prediction, reference)
    prediction, reference, spacing = _squeezed(prediction, reference, spacing)
    metrics = metrics_for(reference.ndim, instances)
    label_boxes = LabelBoxes(prediction), LabelBoxes(reference)
    diagonal_mm = image_diagonal_mm(reference.shape, spacing)
    voxel_size = math.prod(spacing) / (1000 if reference.ndim == 3 else 1)
    rows = []
    for name, values in regions.items():
        reference_voxels, predicted_voxels, shared = counts.region(values)
        outcome = outcome_of(reference_voxels, predicted_voxels, shared)
        difference, percent = size_difference(reference_voxels, predicted_voxels, voxel_size)
        nsd, hd95, assd = math.nan, math.nan, math.nan
        if outcome in (Outcome.DETECTED, Outcome.DISJOINT):
            box = union(reference.ndim, (boxes.region(values) for boxes in label_boxes))
            surfaces = surface_distances(_mask(prediction[box], values), _mask(reference[box], values), spacing)
            nsd, hd95, assd = surfaces.nsd(tolerances[name]), surfaces.hausdorff(95), surfaces.assd()
        elif outcome is not Outcome.ABSENT:
            nsd, hd95, assd = 0.0, math.inf, math.inf
        computed = [
            dice(reference_voxels, predicted_voxels, shared),
            nsd,
            hd95,
            assd,
            difference,
            percent,
            precision(predicted_voxels, shared),
            recall(reference_voxels, shared),
        ]
        objects = None
        if instances is not None:
            extra, objects = _object_values(instances, _mask(prediction, values), _mask(reference, values), spacing)
            computed += extra
        raw = dict(zip([metric.name for metric in metrics], computed, strict=True))
        rows.append(
            LabelScore(
                case=case,
                patient=patient or case,
                label=name,
                outcome=outcome,
                reason=REASONS[outcome],
                reference_voxels=reference_voxels,
                predicted_voxels=predicted_voxels,
                reference_size=reference_voxels * voxel_size,
                predicted_size=predicted_voxels * voxel_size,
                values=counted_values(raw, metrics, outcome, diagonal_mm),
                raw=raw,
                objects=objects,
            )
        )
    return rows


def measured_dims(shape: Sequence[int]) -> int:
    """Return 2 for an image or a volume of one slice, else 3.

    A volume with two or three axes of length 1 is no slice; its surfaces are measured in 3D.
    """
    return 2 if len(shape) == 2 or list(shape).count(1) == 1 else 3


def tolerance_per_label(tolerance_mm: Tolerance, names: Sequence[str] | Mapping[str, object]) -> dict[str, float]:
    """Return the NSD tolerance of each structure in mm.

    Raises:
        EvaluationError: a structure without a tolerance, or one that is not a finite number of at least 0.
    """
    given = tolerance_mm if isinstance(tolerance_mm, Mapping) else dict.fromkeys(names, tolerance_mm)
    for name in names:
        if name not in given:
            raise EvaluationError(
                f"label {name!r}: no NSD tolerance; found tolerances for {sorted(given)}; add the label's in mm"
            )
        if not (math.isfinite(given[name]) and given[name] >= 0):
            raise EvaluationError(
                f"label {name!r}: the NSD tolerance must be at least 0 mm, found {given[name]}; give a distance in mm"
            )
    return {name: float(given[name]) for name in names}


def _object_values(
    instances: Instances, prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]
) -> tuple[list[float], InstanceScore | None]:
    """Compute one set of object metrics for two masks, in the order of `metrics_for`, and their matched objects."""
    if instances == "components":
        score = instance_score(connected_components(prediction), connected_components(reference))
        values = [
            score.f1_any,
            score.sensitivity,
            score.num_false_positive,
            score.rq,
            score.sq,
            score.pq,
            score.num_reference,
            score.num_predicted,
        ]
        return [float(value) for value in values], score
    if instances == "brats":
        brats = brats_score(prediction, reference, spacing)
        values = [brats.dice, brats.hd95_mm, brats.num_reference, brats.num_missed, brats.num_false_positive]
        return [float(value) for value in values], None
    if reference.ndim != 2:
        raise EvaluationError(
            f"EM metrics are defined for 2D slices, found shape {reference.shape}; evaluate each slice as a case"
        )
    if not reference.any():
        return [math.nan] * len(EM_METRICS), None
    em = em_score(prediction.astype(np.float32), reference, thresholds=(0.5,))
    return [em.v_rand, em.v_info, em.rand_error, em.pixel_error], None


def _mask(label_map: np.ndarray, values: tuple[int, ...]) -> np.ndarray:
    return label_map == values[0] if len(values) == 1 else np.isin(label_map, values)


def _squeezed(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Return both arrays and their spacing in 2D or 3D, in C order, without the axis of a single slice."""
    shape, steps = reference.shape, tuple(float(step) for step in spacing)
    if len(shape) != len(steps) or len(shape) not in (2, 3):
        raise EvaluationError(f"a case needs 2 or 3 axes with a spacing each, found shape {shape} and spacing {steps}")
    if not all(math.isfinite(step) and step > 0 for step in steps):
        raise EvaluationError(f"spacing must be above 0 mm along each axis, found {steps}; correct the header")
    if measured_dims(shape) < len(shape):
        axis = shape.index(1)
        prediction, reference = prediction.squeeze(axis), reference.squeeze(axis)
        steps = steps[:axis] + steps[axis + 1 :]
    if reference.flags.f_contiguous and not reference.flags.c_contiguous:
        prediction, reference, steps = prediction.T, reference.T, steps[::-1]
    return np.ascontiguousarray(prediction), np.ascontiguousarray(reference), steps
