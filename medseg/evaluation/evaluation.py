"""Evaluation of a folder of predictions against its references."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.progress import track

from medseg.errors import EvaluationError
from medseg.evaluation.case import DEFAULT_TOLERANCE_MM, LabelScore, score_case, tolerance_of
from medseg.evaluation.confusion import confusion, label_regions
from medseg.evaluation.metrics import Metric, metrics_for
from medseg.evaluation.pairs import Problem, Source, label_maps, missing_problems, problem_text, read_pair
from medseg.evaluation.policy import POLICY, REASONS, Outcome, counted_values
from medseg.evaluation.statistics import NUM_DRAWS, ClusterBootstrap
from medseg.evaluation.summary import SCHEMA_VERSION, summarise
from medseg.evaluation.tables import metric_table, metrics_csv, problem_table, worst_table
from medseg.volumes import replacing

Labels = Mapping[str, int | Sequence[int]]
Tolerance = float | Mapping[str, float]


@dataclass(frozen=True)
class Evaluation:
    """The metrics of every case and label and what they sum up to.

    Args:
        rows: one a case and label.
        metrics: the columns of the rows.
        summary: plain data, what summary.json holds.
        problems: what kept cases out; empty unless missing cases were allowed.
    """

    rows: list[LabelScore]
    metrics: tuple[Metric, ...]
    summary: dict[str, Any]
    problems: list[Problem] = field(default_factory=list)

    def mean(self, metric: str = "dice", label: str | None = None) -> float:
        """A label's mean over cases, or without a label the class mean; NaN where no case counts."""
        entry = self.summary["class_mean"][metric] if label is None else self.summary["labels"][label][metric]["mean"]
        return float("nan") if entry["value"] is None else entry["value"]

    def write(self, out: Path | str) -> tuple[Path, Path]:
        """Write metrics.csv and summary.json into a folder, each whole or not at all; returns their paths."""
        size_unit = "ml" if self.summary["spatial_dims"] == 3 else "mm2"
        texts = {
            "metrics.csv": metrics_csv(self.rows, self.metrics, size_unit),
            "summary.json": json.dumps(self.summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        }
        paths = [Path(out) / name for name in texts]
        for path, text in zip(paths, texts.values(), strict=True):
            with replacing(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        return paths[0], paths[1]

    def tables(self) -> Group:
        """What the terminal shows: problems, worst cases, metrics (a Rich renderable)."""
        parts = [problem_table(self.problems)] if self.problems else []
        return Group(*parts, worst_table(self.summary), metric_table(self.summary))

    def print(self, console: Console | None = None) -> None:
        """Print the tables."""
        (console or Console()).print(self.tables())


def evaluate(
    predictions: Source,
    references: Source,
    out: Path | str | None = None,
    labels: Any = None,
    against: Source | None = None,
    allow_missing: bool = False,
    *,
    tolerance_mm: Tolerance = DEFAULT_TOLERANCE_MM,
    patients: Mapping[str, str] | None = None,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Compare predicted label maps with reference label maps, matched by case id.

    Args:
        predictions: a folder, one file, several files, or case id → file. The id is the file name without its suffix.
        references: the same.
        out: folder for metrics.csv and summary.json; None writes nothing.
        labels: the structures: a manifest (path or object), or a mapping name → value or values; None takes every
            value above 0 that occurs.
        against: other predictions of the same cases, to compare with case by case.
        allow_missing: leave out cases with a problem, and say so, instead of raising.
        tolerance_mm: of the NSD, one number or one a label.
        patients: case id → patient; by default the manifest's, else each case is a patient of its own.
        num_draws: bootstrap draws, at least 2000.
        seed: of the bootstrap.
        progress: show a progress bar.

    Raises:
        EvaluationError: nothing to compare, or any problem in the input (all of them in one message, a line each).
    """
    regions, manifest_patients = structures(labels)
    patients = patients or manifest_patients
    predicted, expected = label_maps(predictions, "prediction"), label_maps(references, "reference")
    problems = missing_problems(predicted, expected)
    known = None if regions is None else {0: "background"} | {v: n for n, values in regions.items() for v in values}
    if regions is not None:
        tolerance_of(tolerance_mm, regions)
    scores: dict[str, list[LabelScore]] = {}
    inputs, spatial_dims = [], set()
    cases = sorted(set(predicted) & set(expected))
    for case in track(cases, description="evaluating", disable=not progress, transient=True):
        pair, found = read_pair(case, predicted[case], expected[case], known)
        problems += found
        if pair is None or (problems and not allow_missing):
            continue  # once one problem is known, the remaining cases are only checked
        prediction, reference = pair
        counts = confusion(prediction.array, reference.array)
        present = regions or {str(value): (int(value),) for value in counts.values if value != 0}
        scores[case] = score_case(
            prediction.array,
            reference.array,
            reference.grid.spacing,
            present,
            case=case,
            patient=patients.get(case, case),
            tolerance_mm=tolerance_mm,
            counts=counts,
        )
        inputs.append({"case": case, **_fingerprints(predicted[case], expected[case])})
        spatial_dims.add(2 if 1 in reference.grid.shape else len(reference.grid.shape))
    num_given = len(set(predicted) | set(expected))
    if problems and not allow_missing:
        raise EvaluationError(problem_text(problems, num_given))
    if not scores:
        raise EvaluationError(problem_text(problems, num_given) if problems else "no case to evaluate")
    if len(spatial_dims) > 1:
        raise EvaluationError("2D and 3D cases in one evaluation; evaluate them apart")
    metrics = metrics_for(spatial_dims.pop())
    names = list(regions) if regions is not None else _names(scores)
    rows = [row for case in scores for row in _complete(case, patients.get(case, case), scores[case], names, metrics)]
    bootstrap = ClusterBootstrap([row.patient for row in rows], num_draws, seed)
    summary = {
        "schema_version": SCHEMA_VERSION,
        "medseg_version": _version(),
        "num_cases": len(scores),
        "num_patients": len(bootstrap.patients),
        "num_left_out": num_given - len(scores),
        "problems": [vars(problem) for problem in problems],
        "policy": POLICY,
        "tolerance_mm": tolerance_of(tolerance_mm, names),
        "bootstrap": {"draws": num_draws, "seed": seed, "clusters": "patients"},
        "spatial_dims": 3 if metrics[4].unit == "ml" else 2,
        "label_values": None if regions is None else {name: list(values) for name, values in regions.items()},
        **summarise(rows, metrics, bootstrap),
        "inputs": inputs,
        "inputs_sha256": hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest(),
    }
    evaluation = Evaluation(rows, metrics, summary, problems)
    if out is not None:
        evaluation.write(out)
    return evaluation


def structures(labels: Any) -> tuple[dict[str, tuple[int, ...]] | None, dict[str, str]]:
    """(name → values, case → patient) of a mapping, or of a manifest given as a path or an object."""
    if labels is None:
        return None, {}
    if isinstance(labels, Mapping):
        return _foreground(labels), {}
    if isinstance(labels, str | Path):
        from medseg.datasets import read_manifest

        labels = read_manifest(labels)
    patients = {case.id: case.patient for case in labels.cases if getattr(case, "patient", None)}
    return _foreground(labels.labels), patients


def _foreground(labels: Labels) -> dict[str, tuple[int, ...]]:
    regions = {name: values for name, values in label_regions(labels).items() if values != (0,)}
    if not regions:
        raise EvaluationError(f"no label above background 0 to evaluate, found {dict(labels)}")
    return regions


def _names(scores: Mapping[str, Sequence[LabelScore]]) -> list[str]:
    names = sorted({int(row.label) for rows in scores.values() for row in rows})
    if not names:
        raise EvaluationError(
            "every voxel of every case is background 0; nothing to evaluate, name the labels to count absences"
        )
    return [str(name) for name in names]


def _complete(
    case: str, patient: str, rows: Sequence[LabelScore], names: Sequence[str], metrics: Sequence[Metric]
) -> list[LabelScore]:
    """The rows of one case in label order; labels that occur in other cases only are correct absences here."""
    given = {row.label: row for row in rows}
    undefined = {metric.name: float("nan") for metric in metrics}
    absent = partial(
        LabelScore,
        outcome=Outcome.ABSENT,
        reason=REASONS[Outcome.ABSENT],
        reference_voxels=0,
        predicted_voxels=0,
        reference_size=0.0,
        predicted_size=0.0,
        values=counted_values(undefined, metrics, Outcome.ABSENT, 0.0),
        raw=undefined,
    )
    return [given.get(name) or absent(case=case, patient=patient, label=name) for name in names]


def _fingerprints(prediction: Path, reference: Path) -> dict[str, str]:
    return {
        "prediction": str(prediction),
        "prediction_sha256": _sha256(prediction),
        "reference": str(reference),
        "reference_sha256": _sha256(reference),
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _version() -> str:
    try:
        return metadata.version("medseg")
    except metadata.PackageNotFoundError:
        return "unknown"
