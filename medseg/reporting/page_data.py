"""The numbers that the page's scripts draw from, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medseg.evaluation import Evaluation, Outcome
from medseg.figures.viewer.view import View
from medseg.figures.viewer.view_data import short, view_data
from medseg.reporting.selection import NUM_WORST, Names


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
