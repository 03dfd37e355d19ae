"""The numbers that the page's scripts draw from, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medseg.evaluation import Evaluation, Outcome
from medseg.figures.viewer.packing import short, view_data
from medseg.figures.viewer.view import View

NUM_WORST = 12


def viewer_cases(summary: Mapping[str, Any], num_worst: int = NUM_WORST) -> list[str]:
    """The worst cases, worst first, then those at the percentiles of Dice that are not among them."""
    worst = [entry["case"] for entry in summary["cases"][:num_worst]]
    return list(dict.fromkeys([*worst, *summary["percentile_cases"].values()]))


@dataclass(frozen=True)
class Names:
    """What cases and patients are called on the page.

    Args:
        cases, patients: id → shown name; empty shows the ids themselves.
    """

    cases: Mapping[str, str] = field(default_factory=dict)
    patients: Mapping[str, str] = field(default_factory=dict)

    @property
    def are_hidden(self) -> bool:
        """Whether ids are replaced."""
        return bool(self.cases)

    def case(self, case: str) -> str:
        """The shown name of a case."""
        return self.cases.get(case, "a case" if self.are_hidden else case)

    def patient(self, patient: str) -> str:
        """The shown name of a patient."""
        return self.patients.get(patient, "a patient" if self.are_hidden else patient)


def numbered(cases: Sequence[str], patients: Sequence[str]) -> Names:
    """Numbers for names, in the order given, which must not be that of the ids."""
    return Names(
        {case: f"case {number:03d}" for number, case in enumerate(dict.fromkeys(cases), start=1)},
        {patient: f"patient {number:03d}" for number, patient in enumerate(dict.fromkeys(patients), start=1)},
    )


def page_data(evaluation: Evaluation, names: Names, views: Mapping[str, View]) -> dict[str, Any]:
    """Cases worst first with all their values, and what each view needs to be drawn.

    Args:
        evaluation: the numbers.
        names: what cases and patients are called.
        views: case id → view, in the order of the page's blocks.
    """
    summary = evaluation.summary
    order = [entry["case"] for entry in summary["cases"]]
    position = {case: number for number, case in enumerate(order)}
    labels = list(summary["labels"])
    column = {label: number for number, label in enumerate(labels)}
    view_number = {case: number for number, case in enumerate(views)}
    values: dict[str, list[list[float | None]]] = {
        metric.name: [[None] * len(labels) for _ in order] for metric in evaluation.metrics
    }
    outcomes: list[list[str]] = [[Outcome.ABSENT.value] * len(labels) for _ in order]
    for row in evaluation.rows:
        case, label = position[row.case], column[row.label]
        outcomes[case][label] = row.outcome.value
        for metric in evaluation.metrics:
            values[metric.name][case][label] = short(row.values[metric.name])
    return {
        "cases": [
            {
                "name": names.case(entry["case"]),
                "patient": names.patient(entry["patient"]),
                "dice": short(entry["dice"]),
                "missed": entry["missed"],
                "spurious": entry["spurious"],
                "view": view_number.get(entry["case"]),
            }
            for entry in summary["cases"]
        ],
        "has_patients": any(entry["patient"] != entry["case"] for entry in summary["cases"]),
        "labels": labels,
        "metrics": summary["metrics"],
        "values": values,
        "outcomes": outcomes,
        "means": {label: _means(entry, evaluation) for label, entry in summary["labels"].items()},
        "percentiles": {percent: position[case] for percent, case in summary["percentile_cases"].items()},
        "worst": list(range(min(NUM_WORST, len(order)))),
        "views": [
            {"case": position[case]} | view_data(view, names.case(case), summary["label_values"])
            for case, view in views.items()
        ],
        "input_columns": [] if names.are_hidden else ["prediction", "SHA-256", "reference", "SHA-256"],
        "inputs": [] if names.are_hidden else [_input_cells(entry) for entry in summary["inputs"]],
    }


def _means(entry: Mapping[str, Any], evaluation: Evaluation) -> dict[str, Any]:
    return {
        metric.name: {end: short(entry[metric.name]["mean"][end]) for end in ("value", "low", "high")}
        for metric in evaluation.metrics
    }


def _input_cells(entry: Mapping[str, str]) -> list[str]:
    return [entry[key] for key in ("case", "prediction", "prediction_sha256", "reference", "reference_sha256")]
