"""Scoring every case of two sets of label maps, and finding everything that is wrong with them in the same pass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track

from medseg.errors import EvaluationError
from medseg.evaluation.case import DEFAULT_TOLERANCE_MM, LabelScore, score_case, tolerance_of
from medseg.evaluation.confusion import confusion
from medseg.evaluation.metrics import Instances, Metric, metrics_for
from medseg.evaluation.pairs import Problem, missing_problems, named_like, problem_text, read_pair
from medseg.evaluation.policy import REASONS, Outcome, counted_values
from medseg.evaluation.structures import Structures
from medseg.volumes.digest import file_sha256

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
