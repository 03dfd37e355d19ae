"""Evaluation of predictions against their references: rows, summary, files, tables."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.progress import track

from medseg.datasets import Manifest, read_manifest
from medseg.errors import EvaluationError
from medseg.evaluation.case import DEFAULT_TOLERANCE_MM, LabelScore, score_case, tolerance_of
from medseg.evaluation.comparison import PairedDifference, compare, read_metrics_csv
from medseg.evaluation.metrics import POLICY, REASONS, Instances, Metric, Outcome, counted_values, metrics_for
from medseg.evaluation.overlap import confusion
from medseg.evaluation.pairs import (
    Labels,
    Problem,
    Source,
    Structures,
    label_maps,
    manifest_references,
    missing_problems,
    named_like,
    problem_text,
    read_pair,
    structures_of,
)
from medseg.evaluation.statistics import NUM_DRAWS, ClusterBootstrap
from medseg.evaluation.summary import SCHEMA_VERSION, comparison_json, summarise
from medseg.evaluation.tables import comparison_table, metric_tables, metrics_csv, problem_table, worst_table
from medseg.versions import installed_version
from medseg.volumes import replacing
from medseg.volumes.files import file_sha256

Tolerance = float | Mapping[str, float]


@dataclass(frozen=True)
class Scored:
    """Scores of all cases that can be scored.

    Args:
        rows: one a case and structure, cases in order of their id.
        names: the structures.
        metrics: the columns.
        spatial_dims: 2 or 3.
        problems: all that is wrong with the input.
        num_given: how many cases either side has.
        inputs: the files of each scored case with their SHA-256.
    """

    rows: list[LabelScore]
    names: list[str]
    metrics: tuple[Metric, ...]
    spatial_dims: int
    problems: list[Problem]
    num_given: int
    inputs: list[dict[str, str]]


def score_all(
    predictions: Mapping[str, Path],
    references: Mapping[str, Path],
    structures: Structures,
    *,
    patients: Mapping[str, str],
    tolerance_mm: Tolerance = DEFAULT_TOLERANCE_MM,
    instances: Instances | None = None,
    allow_missing: bool = False,
    progress: bool = False,
) -> Scored:
    """Score every case that both sides have. Once one problem is known and not allowed, the rest is only checked.

    Args:
        predictions, references: case id → label map; a prediction may be named as MONAI saves it (``named_like``).
        structures: what to score.
        patients: case id → patient; a case without one is its own.
        tolerance_mm: of the NSD, one number or one a structure.
        instances: a set of object metrics to add.
        allow_missing: leave out cases with a problem instead of raising.
        progress: show a progress bar.

    Raises:
        EvaluationError: any problem, all of them in one message; or nothing to score.
    """
    if structures.regions is not None:
        tolerance_of(tolerance_mm, structures.regions)
    predictions = named_like(references, predictions)
    problems = missing_problems(predictions, references)
    num_given = len(set(predictions) | set(references))
    scores: dict[str, list[LabelScore]] = {}
    dims: dict[int, str] = {}
    inputs = []
    cases = sorted(set(predictions) & set(references))
    console = Console(stderr=True)
    shown = progress and console.is_terminal  # a bar that nobody sees leaves an empty line in a log
    for case in track(cases, description="evaluating", disable=not shown, transient=True, console=console):
        pair, found = read_pair(case, predictions[case], references[case], structures)
        problems += found
        if pair is None or (problems and not allow_missing):
            continue
        prediction, reference, grid = pair
        counts = confusion(prediction, reference)
        scores[case] = score_case(
            prediction,
            reference,
            grid.spacing,
            structures.regions or {str(value): int(value) for value in counts.values if value != 0},
            case=case,
            patient=patients.get(case, case),
            tolerance_mm=tolerance_mm,
            instances=instances,
            counts=counts,
        )
        dims.setdefault(2 if 1 in grid.shape else grid.spatial_dims, case)
        inputs.append({"case": case, **_fingerprints(predictions[case], references[case])})
    if problems and not (allow_missing and scores):
        raise EvaluationError(problem_text(problems, num_given))
    if len(dims) > 1:
        raise EvaluationError(f"case {dims[2]} is 2D and case {dims[3]} is 3D; evaluate them apart")
    (spatial_dims,) = dims
    metrics = metrics_for(spatial_dims, instances)
    names = list(structures.regions) if structures.regions is not None else _occurring(scores)
    rows = [row for case in scores for row in _complete(case, patients.get(case, case), scores[case], names, metrics)]
    return Scored(rows, names, metrics, spatial_dims, problems, num_given, inputs)


def _occurring(scores: Mapping[str, Sequence[LabelScore]]) -> list[str]:
    names = sorted({int(row.label) for rows in scores.values() for row in rows})
    if not names:
        raise EvaluationError(
            f"all voxels of all {len(scores)} cases are background 0 on both sides; name the labels to count absences"
        )
    return [str(name) for name in names]


def _complete(
    case: str, patient: str, rows: Sequence[LabelScore], names: Sequence[str], metrics: Sequence[Metric]
) -> list[LabelScore]:
    """The rows of one case in structure order; a structure that only other cases have is a correct absence here."""
    given = {row.label: row for row in rows}
    raw = {metric.name: math.nan for metric in metrics}
    values = counted_values(raw, metrics, Outcome.ABSENT, 0.0)
    reason = REASONS[Outcome.ABSENT]
    return [
        given.get(name) or LabelScore(case, patient, name, Outcome.ABSENT, reason, 0, 0, 0.0, 0.0, values, raw)
        for name in names
    ]


def _fingerprints(prediction: Path, reference: Path) -> dict[str, str]:
    return {
        "prediction": str(prediction),
        "prediction_sha256": file_sha256(prediction),
        "reference": str(reference),
        "reference_sha256": file_sha256(reference),
    }


@dataclass(frozen=True)
class Evaluation:
    """The metrics of every case and structure and what they sum up to.

    Args:
        rows: one a case and structure.
        metrics: the columns of the rows.
        summary: plain data, what summary.json holds.
        problems: what kept cases out; empty unless missing cases were allowed.
        comparison: paired differences to other predictions; empty where none were given.
    """

    rows: list[LabelScore]
    metrics: tuple[Metric, ...]
    summary: dict[str, Any]
    problems: list[Problem] = field(default_factory=list)
    comparison: list[PairedDifference] = field(default_factory=list)

    def mean(self, metric: str = "dice", label: str | None = None) -> float:
        """A label's mean over cases, or without a label the class mean; NaN where no case counts."""
        entry = self.summary["class_mean"][metric] if label is None else self.summary["labels"][label][metric]["mean"]
        return math.nan if entry["value"] is None else float(entry["value"])

    def write(self, out: Path | str) -> tuple[Path, Path]:
        """Write metrics.csv and summary.json into a folder, each whole or not at all; returns their paths."""
        size_unit = "ml" if self.summary["spatial_dims"] == 3 else "mm2"
        table, summary = Path(out) / "metrics.csv", Path(out) / "summary.json"
        with replacing(table) as temporary:
            temporary.write_text(metrics_csv(self.rows, self.metrics, size_unit), encoding="utf-8")
        with replacing(summary) as temporary:
            text = json.dumps(self.summary, indent=2, ensure_ascii=False, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8")
        return table, summary

    def tables(self) -> Group:
        """What the terminal shows: problems, worst cases first, metrics, comparison (a Rich renderable)."""
        parts = [problem_table(self.problems)] if self.problems else []
        parts += [worst_table(self.summary), *metric_tables(self.summary)]
        return Group(*parts, *([comparison_table(self.comparison)] if self.comparison else []))

    def print(self, console: Console | None = None) -> None:
        """Print the tables."""
        (console or Console()).print(self.tables())


def evaluate(
    predictions: Source,
    references: Source,
    out: Path | str | None = None,
    labels: Labels | Manifest | str | Path | None = None,
    against: Source | None = None,
    allow_missing: bool = False,
    *,
    tolerance_mm: Tolerance = DEFAULT_TOLERANCE_MM,
    instances: Instances | None = None,
    patients: Mapping[str, str] | None = None,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Compare predicted label maps with reference label maps, matched by case id.

    Args:
        predictions: a folder, one file, several files, or case id → file. The id is the file name without its suffix.
        references: the same; with a manifest, a folder may also be laid out as the manifest says.
        out: folder for metrics.csv and summary.json; None writes nothing.
        labels: the structures: a manifest (name, path or object), or a mapping name → value or values; None takes
            every value above 0 that occurs.
        against: other predictions of the same cases to compare with, or the metrics.csv of an earlier evaluation
            (or its folder).
        allow_missing: leave out cases with a problem, and say so, instead of raising.
        tolerance_mm: of the NSD, one number or one a structure.
        instances: object metrics to add: "components", "brats" or "em" (see `medseg.evaluation.metrics`).
        patients: case id → patient; by default the manifest's, else each case is a patient of its own.
        num_draws: bootstrap draws, at least 2000.
        seed: of the bootstrap.
        progress: show a progress bar.

    Raises:
        EvaluationError: nothing to compare, or any problem in the input (all of them in one message, a line each).
    """
    if isinstance(labels, str | Path):
        labels = read_manifest(labels)
    structures = structures_of(labels)
    if patients is None:
        patients = structures.patients
    expected: dict[str, Path] = {}
    if isinstance(labels, Manifest) and isinstance(references, str | Path):
        expected = manifest_references(labels, Path(references))
    expected = expected or label_maps(references, "reference")

    def score(source: Source) -> Scored:
        return score_all(
            label_maps(source, "prediction"),
            expected,
            structures,
            patients=patients,
            tolerance_mm=tolerance_mm,
            instances=instances,
            allow_missing=allow_missing,
            progress=progress,
        )

    scored = score(predictions)
    bootstrap = ClusterBootstrap([row.patient for row in scored.rows], num_draws, seed)
    summary = _head(scored, structures, tolerance_mm, bootstrap, num_draws, seed)
    summary |= summarise(scored.rows, scored.metrics, bootstrap)
    differences: list[PairedDifference] = []
    if against is not None:
        earlier = _earlier_table(against)
        if earlier is None:
            earlier = {(row.case, row.label): row.values for row in score(against).rows}
        differences = compare(scored.rows, earlier, scored.metrics, num_draws, seed)
        summary["comparison"] = {"against": str(against), "differences": comparison_json(differences)}
    summary["inputs"] = scored.inputs
    evaluation = Evaluation(scored.rows, scored.metrics, summary, scored.problems, differences)
    if out is not None:
        evaluation.write(out)
    return evaluation


def _head(
    scored: Scored,
    structures: Structures,
    tolerance_mm: Tolerance,
    bootstrap: ClusterBootstrap,
    num_draws: int,
    seed: int,
) -> dict[str, Any]:
    """What a reader must know before the numbers."""
    num_cases = len(scored.inputs)
    regions = structures.regions
    return {
        "schema_version": SCHEMA_VERSION,
        "versions": {name: installed_version(name) for name in ("medseg", "numpy", "scipy", "SimpleITK")},
        "inputs_sha256": hashlib.sha256(json.dumps(scored.inputs, sort_keys=True).encode()).hexdigest(),
        "num_cases": num_cases,
        "num_patients": len(bootstrap.patients),
        "num_left_out": scored.num_given - num_cases,
        "problems": [vars(problem) for problem in scored.problems],
        "policy": POLICY,
        "tolerance_mm": tolerance_of(tolerance_mm, scored.names),
        "bootstrap": {"draws": num_draws, "seed": seed, "clusters": "patients", "interval": "percentile"},
        "spatial_dims": scored.spatial_dims,
        "label_values": {name: list(regions[name]) if regions else [int(name)] for name in scored.names},
    }


def _earlier_table(against: Source) -> dict[tuple[str, str], dict[str, float]] | None:
    if not isinstance(against, str | Path):
        return None
    path = Path(against)
    path = path / "metrics.csv" if path.is_dir() else path
    return read_metrics_csv(path) if path.suffix == ".csv" and path.is_file() else None
