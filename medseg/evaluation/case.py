"""All metrics of one case, label by label."""

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


def object_values(
    instances: Instances, prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]
) -> tuple[list[float], InstanceScore | None]:
    """The values of one set of object metrics for two masks, and the objects behind them.

    Args:
        instances: "components": connected components matched by overlap; "brats": the challenge's lesion-wise scores
            (3D); "em": partition scores of cells (2D).
        prediction, reference: bool, one shape.
        spacing: voxel size along each axis, in mm.

    Raises:
        EvaluationError: a set that the masks' dimension does not allow.
    """
    if instances == "components":
        score = instance_score(connected_components(prediction), connected_components(reference))
        return [
            score.f1_any,
            score.sensitivity,
            float(score.num_false_positive),
            score.rq,
            score.sq,
            score.pq,
            float(score.num_reference),
            float(score.num_predicted),
        ], score
    if instances == "brats":
        brats = brats_score(prediction, reference, spacing)
        return [
            brats.dice,
            brats.hd95_mm,
            float(brats.num_reference),
            float(brats.num_missed),
            float(brats.num_false_positive),
        ], None
    if reference.ndim != 2:
        raise EvaluationError(
            f"EM metrics are of 2D slices, found shape {reference.shape}; evaluate each slice as a case"
        )
    if not reference.any():
        return [math.nan] * len(EM_METRICS), None
    em = em_score(prediction.astype(np.float32), reference, thresholds=(0.5,))
    return [em.v_rand, em.v_info, em.rand_error, em.pixel_error], None


DEFAULT_TOLERANCE_MM = 1.0


@dataclass(frozen=True)
class LabelScore:
    """The metrics of one structure of one case: a row of metrics.csv.

    Args:
        case: its id.
        patient: who it is of; cases of one patient are resampled together.
        label: the structure's name.
        outcome: detected, disjoint, missed, spurious or absent.
        reason: why a value differs from the raw one, or does not count.
        reference_voxels, predicted_voxels: sizes of the two masks.
        reference_size, predicted_size: the same in ml (3D) or mm² (2D).
        values: what enters the means, by metric name; NaN where nothing does.
        raw: as computed; infinite or NaN where an empty mask leaves it undefined.
        objects: the objects found and missed, where they were asked for.
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
    tolerance_mm: float | Mapping[str, float] = DEFAULT_TOLERANCE_MM,
    instances: Instances | None = None,
    counts: Confusion | None = None,
) -> list[LabelScore]:
    """Dice, NSD, HD95, ASSD, size difference, precision and recall of every label of one case.

    Args:
        prediction: integer label map, shape (i, j) or (i, j, k); one slice (i, j, 1) is measured in 2D.
        reference: integer label map of the same shape.
        spacing: voxel size along each axis, in mm.
        labels: each structure's value, or the values whose union it is.
        case, patient: written into the rows; patient defaults to the case.
        tolerance_mm: of the NSD; one number, or one a label.
        instances: a set of object metrics to add: "components" (F1, sensitivity, false positives, RQ, SQ, PQ),
            "brats" or "em".
        counts: their confusion, where the caller has it already.

    Returns:
        One row a label, in the order of `labels`. See `medseg.evaluation.metrics` for empty masks.

    Raises:
        EvaluationError: shapes, spacing, labels or tolerance that cannot be used.
    """
    regions = label_regions(labels)
    tolerances = tolerance_of(tolerance_mm, regions)
    counts = counts or confusion(prediction, reference)
    prediction, reference, spacing = _squeezed(prediction, reference, spacing)
    metrics = metrics_for(reference.ndim, instances)
    both_boxes = LabelBoxes(prediction), LabelBoxes(reference)
    diagonal_mm = image_diagonal_mm(reference.shape, spacing)
    voxel_size = math.prod(spacing) / (1000 if reference.ndim == 3 else 1)
    rows = []
    for name, values in regions.items():
        reference_voxels, predicted_voxels, shared = counts.region(values)
        outcome = outcome_of(reference_voxels, predicted_voxels, shared)
        difference, percent = size_difference(reference_voxels, predicted_voxels, voxel_size)
        nsd, hd95, assd = math.nan, math.nan, math.nan
        if outcome in (Outcome.DETECTED, Outcome.DISJOINT):
            box = union(reference.ndim, (boxes.region(values) for boxes in both_boxes))
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
            extra, objects = object_values(instances, _mask(prediction, values), _mask(reference, values), spacing)
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


def tolerance_of(
    tolerance_mm: float | Mapping[str, float], names: Sequence[str] | Mapping[str, object]
) -> dict[str, float]:
    """Each label's NSD tolerance in mm.

    Raises:
        EvaluationError: a label without one, or one that is not a finite number of at least 0.
    """
    given = tolerance_mm if isinstance(tolerance_mm, Mapping) else dict.fromkeys(names, tolerance_mm)
    for name in names:
        if name not in given:
            raise EvaluationError(f"label {name!r}: no NSD tolerance given, found ones for {sorted(given)}; add its mm")
        if not (math.isfinite(given[name]) and given[name] >= 0):
            raise EvaluationError(f"label {name!r}: the NSD tolerance must be at least 0 mm, found {given[name]}")
    return {name: float(given[name]) for name in names}


def _mask(label_map: np.ndarray, values: tuple[int, ...]) -> np.ndarray:
    return label_map == values[0] if len(values) == 1 else np.isin(label_map, values)


def _squeezed(
    prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, tuple[float, ...]]:
    """Both arrays and their spacing in 2D or 3D, in C order, without the one axis of a single slice."""
    shape, steps = reference.shape, tuple(float(step) for step in spacing)
    if len(shape) != len(steps) or len(shape) not in (2, 3):
        raise EvaluationError(f"a case needs 2 or 3 axes with a spacing each, found shape {shape} and spacing {steps}")
    if not all(math.isfinite(step) and step > 0 for step in steps):
        raise EvaluationError(f"spacing must be above 0 mm along each axis, found {steps}; correct the header")
    if len(shape) == 3 and shape.count(1) == 1:
        axis = shape.index(1)
        prediction, reference = prediction.squeeze(axis), reference.squeeze(axis)
        steps = steps[:axis] + steps[axis + 1 :]
    if reference.flags.f_contiguous and not reference.flags.c_contiguous:
        prediction, reference, steps = prediction.T, reference.T, steps[::-1]
    return np.ascontiguousarray(prediction), np.ascontiguousarray(reference), steps
