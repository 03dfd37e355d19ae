"""Paired comparison of two sets of predictions of the same cases."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from medseg.errors import EvaluationError, one_line
from medseg.evaluation.metrics import ASSD, DICE, HD95, NSD, Metric
from medseg.evaluation.scoring import LabelScore
from medseg.evaluation.statistics import LEVEL, ClusterBootstrap, Estimate, holm, patient_means, signed_rank_p

COMPARED = (DICE.name, NSD.name, HD95.name, ASSD.name)
CLASS_MEAN = "class mean"
Verdict = Literal["this is better", "the other is better", "no winner"]
# (case, label) → metric → counted value
Table = Mapping[tuple[str, str], Mapping[str, float]]


@dataclass(frozen=True)
class PairedDifference:
    """Paired difference of one metric of one structure, this evaluation minus the other.

    Args:
        metric: name of the metric.
        label: name of the structure, or "class mean".
        this, other: means over the pairs that count on both sides.
        difference: mean of the differences with its interval, resampled by patient.
        one_sided: number of pairs left out because only one side counts; the other is a correct absence.
        p: two-sided p value of Wilcoxon's signed-rank test over patients; 1 if no patient differs.
        p_holm: the same, corrected for all comparisons of the table (Holm 1979).
        verdict: a winner only if the interval does not contain zero and p_holm is below 5 %.
    """

    metric: str
    label: str
    this: float
    other: float
    difference: Estimate
    one_sided: int
    p: float
    p_holm: float
    verdict: Verdict


def compare(
    rows: Sequence[LabelScore], other: Table, metrics: Sequence[Metric], num_draws: int, seed: int
) -> list[PairedDifference]:
    """Compare two evaluations case by case, for each structure and for the unweighted class mean.

    Args:
        rows: rows of this evaluation.
        other: counted values of the other evaluation by (case, label) and metric.
        metrics: metrics of this evaluation; Dice, NSD, HD95 and ASSD are compared if both sides have them.
        num_draws, seed: number of bootstrap draws and their seed.

    Returns:
        One difference per metric and structure. Pairs with a correct absence on either side do not enter.

    Raises:
        EvaluationError: the two have no case and label in common.
    """
    pairs = [row for row in rows if (row.case, row.label) in other]
    if not pairs:
        raise EvaluationError(
            "the two evaluations have no case and label in common; compare predictions of one data set"
        )
    bootstrap = ClusterBootstrap([row.patient for row in pairs], num_draws, seed)
    labels = list(dict.fromkeys(row.label for row in pairs))
    found: list[tuple[Metric, str, _Pairs, Estimate, float]] = []
    for metric in metrics:
        if metric.name not in COMPARED or not all(metric.name in other[row.case, row.label] for row in pairs):
            continue
        groups = {label: _pairs([row for row in pairs if row.label == label], other, metric.name) for label in labels}
        counted = [group for group in groups.values() if group.cases]
        for label, group in groups.items():
            estimate = bootstrap.mean(group.difference, group.patients)
            found.append((metric, label, group, estimate, _signed_rank([group])))
        if len(counted) > 1:
            everything = _Pairs.joined(counted)
            estimate = bootstrap.mean_of_means([(group.difference, group.patients) for group in counted])
            estimate = replace(estimate, n=len(set(everything.cases)))
            found.append((metric, CLASS_MEAN, everything, estimate, _signed_rank(counted)))
    corrected = holm([entry[-1] for entry in found])
    return [
        PairedDifference(
            metric=metric.name,
            label=label,
            this=group.this_mean,
            other=group.other_mean,
            difference=estimate,
            one_sided=group.one_sided,
            p=p,
            p_holm=p_holm,
            verdict=_verdict(metric, estimate, p_holm),
        )
        for (metric, label, group, estimate, p), p_holm in zip(found, corrected, strict=True)
    ]


@dataclass(frozen=True)
class _Pairs:
    """The pairs of one metric and structure that count on both sides."""

    difference: np.ndarray
    cases: list[str]
    patients: list[str]
    this_mean: float
    other_mean: float
    one_sided: int

    @classmethod
    def joined(cls, groups: Sequence[_Pairs]) -> _Pairs:
        """Join the pairs of all structures; the means become the unweighted class means."""
        return cls(
            difference=np.concatenate([group.difference for group in groups]),
            cases=[case for group in groups for case in group.cases],
            patients=[patient for group in groups for patient in group.patients],
            this_mean=float(np.mean([group.this_mean for group in groups])),
            other_mean=float(np.mean([group.other_mean for group in groups])),
            one_sided=sum(group.one_sided for group in groups),
        )


def _pairs(rows: Sequence[LabelScore], other: Table, metric: str) -> _Pairs:
    this = np.array([row.values[metric] for row in rows])
    that = np.array([other[row.case, row.label][metric] for row in rows])
    both = np.isfinite(this) & np.isfinite(that)
    return _Pairs(
        difference=(this - that)[both],
        cases=[row.case for row, keep in zip(rows, both, strict=True) if keep],
        patients=[row.patient for row, keep in zip(rows, both, strict=True) if keep],
        this_mean=float(this[both].mean()) if both.any() else math.nan,
        other_mean=float(that[both].mean()) if both.any() else math.nan,
        one_sided=int(np.count_nonzero(np.isfinite(this) != np.isfinite(that))),
    )


def _signed_rank(groups: Sequence[_Pairs]) -> float:
    """Return Wilcoxon's p value over patients, each the mean over structures of its mean difference."""
    of_patient: dict[str, list[float]] = {}
    for group in groups:
        for patient, mean in patient_means(group.difference, group.patients).items():
            of_patient.setdefault(patient, []).append(mean)
    return signed_rank_p([float(np.mean(means)) for means in of_patient.values()])


def _verdict(metric: Metric, difference: Estimate, p_holm: float) -> Verdict:
    excludes_zero = difference.low > 0 or difference.high < 0  # False for a NaN, that is without an interval
    if not excludes_zero or p_holm >= 1 - LEVEL:
        return "no winner"
    is_higher = difference.value > 0
    return "this is better" if is_higher == (metric.better == "higher") else "the other is better"


def read_metrics_csv(path: Path) -> dict[tuple[str, str], dict[str, float]]:
    """Read the counted values of an earlier metrics.csv, or of any CSV with the columns case, label and a metric.

    Raises:
        EvaluationError: the file is no CSV, columns are missing, or a value is not a number.
    """
    try:
        return _read_table(path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EvaluationError(f"{path}: not a table in CSV ({one_line(error)}); give a metrics.csv") from None


def _read_table(path: Path) -> dict[tuple[str, str], dict[str, float]]:
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        columns = [name for name in COMPARED if name in (reader.fieldnames or ())]
        if not columns or not {"case", "label"} <= set(reader.fieldnames or ()):
            raise EvaluationError(
                f"{path}: needs the columns case, label and one of {', '.join(COMPARED)}, found {reader.fieldnames}; "
                "add the missing columns"
            )
        table = {}
        for record in reader:
            try:
                values = {name: float(record[name]) if record[name] else math.nan for name in columns}
            except ValueError as error:
                raise EvaluationError(
                    f"{path} line {reader.line_num}: {error}; write a number or leave the field empty"
                ) from error
            table[record["case"], record["label"]] = values
    return table
