"""Statistics of summary.json: over cases per structure, then the unweighted mean over structures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from medseg.evaluation.comparison import PairedDifference
from medseg.evaluation.metrics import ASSD, DICE, HD95, Metric, Outcome
from medseg.evaluation.scoring import LabelScore
from medseg.evaluation.statistics import LEVEL, ClusterBootstrap, Estimate, median

SCHEMA_VERSION = 1
# Their means hold the penalties of missed structures; a median over the detected cases is given as well.
PENALISED_DISTANCES = (HD95.name, ASSD.name)
PERCENTILES = (5, 25, 50, 75, 95)
# Edges of the size bins of objects, by number of dimensions: in ml (3D) and mm² (2D).
SIZE_EDGES = {3: (0.1, 1.0, 10.0), 2: (10.0, 100.0, 1000.0)}


def summarise(rows: Sequence[LabelScore], metrics: Sequence[Metric], bootstrap: ClusterBootstrap) -> dict[str, Any]:
    """Compute the statistics part of summary.json.

    Args:
        rows: one per case and structure.
        metrics: the columns of the rows.
        bootstrap: of the rows' patients.

    Returns:
        Plain data: `metrics`, `interval_level`, `outcomes`, `class_mean`, `labels`, `cases` and `percentile_cases`.
    """
    by_label: dict[str, list[LabelScore]] = {}
    for row in rows:
        by_label.setdefault(row.label, []).append(row)
    return {
        "metrics": [
            {"name": metric.name, "title": metric.title, "unit": metric.unit, "better": metric.better}
            for metric in metrics
        ],
        "interval_level": LEVEL,
        "outcomes": outcome_counts(rows),
        "class_mean": {metric.name: estimate_json(class_mean(by_label, metric, bootstrap)) for metric in metrics},
        "labels": {label: _label_summary(members, metrics, bootstrap) for label, members in by_label.items()},
        "cases": worst_first(rows),
        "percentile_cases": percentile_cases(rows),
    }


def class_mean(by_label: Mapping[str, Sequence[LabelScore]], metric: Metric, bootstrap: ClusterBootstrap) -> Estimate:
    """Return the unweighted mean over structures of their means over cases; n counts the cases that enter."""
    estimate = bootstrap.mean_of_means([columns(members, metric.name) for members in by_label.values()])
    rows = [row for members in by_label.values() for row in members]
    return replace(estimate, n=len({row.case for row in rows if math.isfinite(row.values[metric.name])}))


def columns(rows: Sequence[LabelScore], metric: str) -> tuple[list[float], list[str]]:
    """Return the counted values of a metric and their patients."""
    return [row.values[metric] for row in rows], [row.patient for row in rows]


def outcome_counts(rows: Sequence[LabelScore]) -> dict[str, int]:
    """Count how often each outcome occurred, zeros included except for structures that were not annotated."""
    counts = Counter(row.outcome for row in rows)
    return {outcome.value: counts[outcome] for outcome in Outcome if outcome is not Outcome.UNKNOWN or counts[outcome]}


def _label_summary(
    rows: Sequence[LabelScore], metrics: Sequence[Metric], bootstrap: ClusterBootstrap
) -> dict[str, Any]:
    summary: dict[str, Any] = {"outcomes": outcome_counts(rows)}
    for metric in metrics:
        values, patients = columns(rows, metric.name)
        summary[metric.name] = {
            "mean": estimate_json(bootstrap.mean(values, patients)),
            "median": estimate_json(median(values, patients)),
        }
        if metric.name in PENALISED_DISTANCES:
            detected = [row for row in rows if row.outcome in (Outcome.DETECTED, Outcome.DISJOINT)]
            summary[metric.name]["median_detected"] = estimate_json(median(*columns(detected, metric.name)))
    if any(row.objects is not None for row in rows):
        spatial_dims = 3 if any(metric.name == "volume_difference_ml" for metric in metrics) else 2
        summary["sensitivity_by_size"] = sensitivity_by_size(rows, spatial_dims)
    return summary


def sensitivity_by_size(rows: Sequence[LabelScore], spatial_dims: int) -> list[dict[str, Any]]:
    """Count the reference objects of all cases by size, and how many of each size a prediction overlaps.

    Sizes are in ml (3D) or mm² (2D). A bin holds sizes from its lower edge up to, but not including, its upper edge.
    """
    scored = [row for row in rows if row.objects is not None and row.reference_voxels]
    voxel_sizes = [row.reference_size / row.reference_voxels for row in scored]
    sizes = [row.objects.reference_voxels * size for row, size in zip(scored, voxel_sizes, strict=True) if row.objects]
    found = [row.objects.found for row in scored if row.objects]
    all_sizes, all_found = np.concatenate([[], *sizes]), np.concatenate([np.zeros(0, bool), *found])
    bins = []
    for low, high in pairwise((0.0, *SIZE_EDGES[spatial_dims], math.inf)):
        inside = (all_sizes >= low) & (all_sizes < high)
        n, num_found = int(inside.sum()), int(all_found[inside].sum())
        bins.append(
            {"from": low, "to": number(high), "n": n, "found": num_found, "sensitivity": num_found / n if n else None}
        )
    return bins


def comparison_json(differences: Sequence[PairedDifference]) -> list[dict[str, Any]]:
    """Convert paired differences to JSON."""
    return [
        vars(d) | {"this": number(d.this), "other": number(d.other), "difference": estimate_json(d.difference)}
        for d in differences
    ]


def estimate_json(estimate: Estimate) -> dict[str, Any]:
    """Convert an estimate to JSON, with null for a value that does not exist."""
    return {
        "value": number(estimate.value),
        "low": number(estimate.low),
        "high": number(estimate.high),
        "n": estimate.n,
        "patients": estimate.patients,
        "few": estimate.is_few,
    }


def number(value: float) -> float | None:
    """Return a finite number as it is and None for NaN and infinity, which JSON cannot hold."""
    return float(value) if math.isfinite(value) else None


def case_dice_means(rows: Sequence[LabelScore]) -> dict[str, float]:
    """Return the mean Dice of each case over its structures; NaN if all of them are correct absences."""
    grouped: dict[str, list[float]] = {}
    for row in rows:
        grouped.setdefault(row.case, []).append(row.values[DICE.name])
    return {
        case: float(np.nanmean(values)) if np.isfinite(values).any() else math.nan for case, values in grouped.items()
    }


def worst_first(rows: Sequence[LabelScore]) -> list[dict[str, Any]]:
    """List every case with its mean Dice, missed and spurious structures: most misses first, then lowest Dice."""
    missed = Counter(row.case for row in rows if row.outcome in (Outcome.MISSED, Outcome.DISJOINT))
    spurious = Counter(row.case for row in rows if row.outcome is Outcome.SPURIOUS)
    patients = {row.case: row.patient for row in rows}
    cases = [
        {
            "case": case,
            "patient": patients[case],
            "dice": number(mean),
            "missed": missed[case],
            "spurious": spurious[case],
        }
        for case, mean in case_dice_means(rows).items()
    ]
    return sorted(cases, key=lambda c: (-c["missed"], math.inf if c["dice"] is None else c["dice"], c["case"]))


def percentile_cases(rows: Sequence[LabelScore]) -> dict[str, str]:
    """Return the cases at the 5th, 25th, 50th, 75th and 95th percentile of mean Dice."""
    ranked = sorted((mean, case) for case, mean in case_dice_means(rows).items() if math.isfinite(mean))
    if not ranked:
        return {}
    return {str(percent): ranked[round(percent / 100 * (len(ranked) - 1))][1] for percent in PERCENTILES}
