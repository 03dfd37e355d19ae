"""Evaluate predictions against references: score all cases, summarise them, write files and print tables."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from medseg.datasets import Manifest, read_manifest
from medseg.errors import EvaluationError, MedsegError, one_line, reason_of_failure
from medseg.evaluation.comparison import PairedDifference, compare, read_metrics_csv
from medseg.evaluation.metrics import (
    EMPTY_MASK_POLICY,
    REASONS,
    Instances,
    Metric,
    Outcome,
    counted_values,
    metrics_for,
)
from medseg.evaluation.overlap import confusion
from medseg.evaluation.pairs import (
    Labels,
    Problem,
    Source,
    Structures,
    drop_monai_postfixes,
    find_label_maps,
    find_manifest_references,
    missing_problems,
    problem_text,
    read_pair,
    structures_of,
)
from medseg.evaluation.scoring import (
    DEFAULT_TOLERANCE_MM,
    LabelScore,
    Tolerance,
    measured_dims,
    score_case,
    tolerance_per_label,
)
from medseg.evaluation.statistics import NUM_DRAWS, ClusterBootstrap
from medseg.evaluation.summary import SCHEMA_VERSION, comparison_json, summarise
from medseg.evaluation.tables import evaluation_tables, metrics_csv
from medseg.versions import installed_version
from medseg.volumes import image_sha256, remove_leftovers, staged, unchanged


@dataclass(frozen=True)
class Evaluation:
    """Metrics of every case and structure, and their statistics.

    Args:
        rows: one per case and structure.
        metrics: the metrics in the rows.
        summary: plain data, the content of summary.json.
        problems: problems that kept cases out; empty unless `allow_missing` was set.
        comparison: paired differences to other predictions; empty if none were given.
    """

    rows: list[LabelScore]
    metrics: tuple[Metric, ...]
    summary: dict[str, Any]
    problems: list[Problem] = field(default_factory=list)
    comparison: list[PairedDifference] = field(default_factory=list)

    def mean(self, metric: str = "dice", label: str | None = None) -> float:
        """Return the mean of a structure over cases, or the class mean if no label is given; NaN if no case counts."""
        entry = self.summary["class_mean"][metric] if label is None else self.summary["labels"][label][metric]["mean"]
        return math.nan if entry["value"] is None else float(entry["value"])

    def write(self, out_dir: str | Path) -> tuple[Path, Path]:
        """Write metrics.csv and summary.json atomically into a folder and return their paths.

        The report.html of an earlier evaluation is removed, because it would show other numbers.
        """
        size_unit = "ml" if self.summary["spatial_dims"] == 3 else "mm2"
        table, summary = Path(out_dir) / "metrics.csv", Path(out_dir) / "summary.json"
        report = Path(out_dir) / "report.html"
        remove_leftovers(out_dir)
        with staged(summary, [report] if report.is_file() else []) as temporary:
            # A file name that is not Unicode cannot be encoded in UTF-8, so its bytes are escaped.
            temporary.with_name(table.name).write_text(
                metrics_csv(self.rows, self.metrics, size_unit), encoding="utf-8", errors="backslashreplace"
            )
            text = json.dumps(self.summary, indent=2, ensure_ascii=False, allow_nan=False)
            temporary.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
        return table, summary

    def print(self, console: Console | None = None) -> None:
        """Print problems, worst cases, metrics and comparison as tables that fit the console."""
        console = console or Console()
        for table in evaluation_tables(self.summary, self.problems, self.comparison, console.width):
            console.print(table)


def evaluate(
    predictions: Source,
    references: Source,
    out_dir: str | Path | None = None,
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
        references: the same. With a manifest, a folder may also be laid out as the manifest says.
        out_dir: folder for metrics.csv and summary.json; None writes nothing.
        labels: the structures, as a manifest (name, path or object) or a mapping name → value or values; None takes
            every value above 0 that occurs.
        against: other predictions of the same cases to compare with, or the metrics.csv of an earlier evaluation
            (or its folder).
        allow_missing: leave out cases with a problem and list them, instead of raising.
        tolerance_mm: tolerance of the NSD in mm, one number or one per structure.
        instances: a set of object metrics to add: "components", "brats" or "em" (see `score_case`).
        patients: case id → patient id; by default the manifest's, else each case is its own patient.
        num_draws: number of bootstrap draws, at least 2000.
        seed: seed of the bootstrap.
        progress: show a progress bar.

    Raises:
        EvaluationError: there is nothing to compare, or the input has problems; the message has one line per problem.
    """
    if isinstance(labels, str | Path):
        labels = read_manifest(labels)
    structures = structures_of(labels)
    if patients is None:
        patients = structures.patients
    expected: dict[str, Path] = {}
    if isinstance(labels, Manifest) and isinstance(references, str | Path):
        expected = find_manifest_references(labels, Path(references))
    expected = expected or find_label_maps(references, "reference")

    def score(source: Source) -> ScoredCases:
        return score_cases(
            find_label_maps(source, "prediction"),
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
    if out_dir is not None:
        evaluation.write(out_dir)
    return evaluation


@dataclass(frozen=True)
class ScoredCases:
    """Scores of all cases without a problem.

    Args:
        rows: one per case and structure, in order of the case ids.
        names: names of the structures.
        metrics: the metrics in the rows.
        spatial_dims: 2 or 3.
        problems: problems of the input.
        num_given: number of cases that at least one side has.
        inputs: the files of each scored case with their SHA-256.
    """

    rows: list[LabelScore]
    names: list[str]
    metrics: tuple[Metric, ...]
    spatial_dims: int
    problems: list[Problem]
    num_given: int
    inputs: list[dict[str, str]]


def score_cases(
    predictions: Mapping[str, Path],
    references: Mapping[str, Path],
    structures: Structures,
    *,
    patients: Mapping[str, str],
    tolerance_mm: Tolerance = DEFAULT_TOLERANCE_MM,
    instances: Instances | None = None,
    allow_missing: bool = False,
    progress: bool = False,
) -> ScoredCases:
    """Score every case that both sides have. After the first problem, the remaining cases are only checked.

    Args:
        predictions, references: case id → label map; a prediction may carry a postfix of MONAI's SaveImage.
        structures: the structures to score.
        patients: case id → patient id; a case without one is its own patient.
        tolerance_mm: tolerance of the NSD in mm, one number or one per structure.
        instances: a set of object metrics to add.
        allow_missing: leave out cases with a problem instead of raising.
        progress: show a progress bar.

    Raises:
        EvaluationError: there are problems, all of them in one message; or there is nothing to score.
    """
    if structures.regions is not None:
        tolerance_per_label(tolerance_mm, structures.regions)
    predictions = drop_monai_postfixes(references, predictions)
    problems = missing_problems(predictions, references)
    num_given = len(set(predictions) | set(references))
    scores: dict[str, list[LabelScore]] = {}
    dims: dict[int, str] = {}
    inputs = []
    cases = sorted(set(predictions) & set(references))
    console = Console(stderr=True)
    is_shown = progress and console.is_terminal  # otherwise Rich writes an empty line into a log file
    for case in track(cases, description="evaluating", disable=not is_shown, transient=True, console=console):
        files = (predictions[case], references[case])
        try:
            with unchanged(files):
                pair, found = read_pair(case, *files, structures)
                digests = {} if found else _file_digests(*files)
        except OSError as error:
            reason, _, way_out = one_line(error).partition("; ")
            pair, found = None, [Problem(case, "changed file", reason, way_out)]
        problems += found
        if pair is None or (problems and not allow_missing):
            continue
        prediction, reference, grid = pair
        try:
            counts = confusion(prediction, reference)
            rows = score_case(
                prediction,
                reference,
                grid.spacing,
                structures.regions or {str(value): int(value) for value in counts.values if value > 0},
                case=case,
                patient=patients.get(case, case),
                tolerance_mm=tolerance_mm,
                instances=instances,
                counts=counts,
            )
            known = structures.annotated.get(case)
            rows = [row if known is None or row.label in known else _without_values(row) for row in rows]
        except MedsegError:  # of the settings, such as object metrics that do not exist in 3D
            raise
        except Exception as error:  # whatever else is raised belongs to this case
            reason, _, way_out = reason_of_failure(error).partition("; ")
            problems.append(
                Problem(case, "not measured", f"{predictions[case]}: {reason}", way_out or "check both files")
            )
            continue
        scores[case] = rows
        dims.setdefault(measured_dims(grid.shape), case)
        inputs.append({"case": case, **digests})
    if problems and not (allow_missing and scores):
        raise EvaluationError(problem_text(problems, num_given))
    if len(dims) > 1:
        raise EvaluationError(f"case {dims[2]} is 2D and case {dims[3]} is 3D; evaluate them separately")
    (spatial_dims,) = dims
    metrics = metrics_for(spatial_dims, instances)
    names = list(structures.regions) if structures.regions is not None else _occurring(scores)
    rows = [row for case in scores for row in _complete(case, patients.get(case, case), scores[case], names, metrics)]
    return ScoredCases(rows, names, metrics, spatial_dims, problems, num_given, inputs)


def _occurring(scores: Mapping[str, Sequence[LabelScore]]) -> list[str]:
    """Return the label values that occur in any case, ascending, as names."""
    names = sorted({int(row.label) for rows in scores.values() for row in rows})
    if not names:
        raise EvaluationError(
            f"all {len(scores)} cases hold only background on both sides; give the labels to count correct absences"
        )
    return [str(name) for name in names]


def _complete(
    case: str, patient: str, rows: Sequence[LabelScore], names: Sequence[str], metrics: Sequence[Metric]
) -> list[LabelScore]:
    """Return the rows of one case in the order of the structures, with a correct absence for each one it lacks."""
    given = {row.label: row for row in rows}
    raw = {metric.name: math.nan for metric in metrics}
    values = counted_values(raw, metrics, Outcome.ABSENT, 0.0)
    reason = REASONS[Outcome.ABSENT]
    return [
        given.get(name) or LabelScore(case, patient, name, Outcome.ABSENT, reason, 0, 0, 0.0, 0.0, values, raw)
        for name in names
    ]


def _without_values(row: LabelScore) -> LabelScore:
    """Return the row of a structure that was not annotated in this case."""
    nothing = dict.fromkeys(row.values, math.nan)
    return replace(
        row, outcome=Outcome.UNKNOWN, reason=REASONS[Outcome.UNKNOWN], values=nothing, raw=nothing, objects=None
    )


def _file_digests(prediction: Path, reference: Path) -> dict[str, str]:
    return {
        "prediction": str(prediction),
        "prediction_sha256": image_sha256(prediction),
        "reference": str(reference),
        "reference_sha256": image_sha256(reference),
    }


def _head(
    scored: ScoredCases,
    structures: Structures,
    tolerance_mm: Tolerance,
    bootstrap: ClusterBootstrap,
    num_draws: int,
    seed: int,
) -> dict[str, Any]:
    """Return the part of the summary that describes the data and the settings."""
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
        "policy": EMPTY_MASK_POLICY,
        "tolerance_mm": tolerance_per_label(tolerance_mm, scored.names),
        "bootstrap": {"draws": num_draws, "seed": seed, "clusters": "patients", "interval": "percentile"},
        "spatial_dims": scored.spatial_dims,
        "label_values": {name: list(regions[name]) if regions else [int(name)] for name in scored.names},
    }


def _earlier_table(against: Source) -> dict[tuple[str, str], dict[str, float]] | None:
    """Read the metrics.csv of an earlier evaluation; None if `against` holds predictions."""
    if not isinstance(against, str | Path):
        return None
    path = Path(against)
    path = path / "metrics.csv" if path.is_dir() else path
    return read_metrics_csv(path) if path.suffix == ".csv" and path.is_file() else None
