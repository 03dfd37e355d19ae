"""metrics.csv and the tables on the terminal."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from medseg.evaluation.case import LabelScore
from medseg.evaluation.comparison import PairedDifference
from medseg.evaluation.metrics import Metric
from medseg.evaluation.pairs import Problem
from medseg.evaluation.summary import estimate_json

WORST_SHOWN = 10
SHOWN_METRICS = (
    "dice",
    "nsd",
    "hd95_mm",
    "assd_mm",
    "object_f1",
    "pq",
    "brats_dice",
    "brats_hd95_mm",
    "v_rand",
    "v_info",
)


def metrics_csv(rows: Sequence[LabelScore], metrics: Sequence[Metric], size_unit: str) -> str:
    """A row a case and label; `<metric>` is what counts, `<metric>_raw` what was computed before the empty policy."""
    names = [metric.name for metric in metrics]
    sizes = [f"reference_{size_unit}", f"predicted_{size_unit}"]
    head = ["case", "patient", "label", "outcome", "reason", "reference_voxels", "predicted_voxels", *sizes, *names]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head + [f"{name}_raw" for name in names])
    for row in rows:
        fixed = [
            row.case,
            row.patient,
            row.label,
            row.outcome.value,
            row.reason,
            row.reference_voxels,
            row.predicted_voxels,
        ]
        numbers = [row.reference_size, row.predicted_size, *(row.values[name] for name in names)]
        writer.writerow(fixed + [cell(value) for value in [*numbers, *(row.raw[name] for name in names)]])
    return text.getvalue()


def cell(value: float) -> str:
    """Nine digits; nothing for a value that is not defined, "inf" for the distance to an empty mask."""
    return "" if math.isnan(value) else f"{value:.9g}"


def metric_table(summary: Mapping[str, Any]) -> Table:
    """A row a label and one for the class mean, each number with its interval and n."""
    shown = [metric for metric in summary["metrics"] if metric["name"] in SHOWN_METRICS]
    table = Table(title=_title(summary), caption=summary["policy"], caption_justify="left")
    table.add_column("label")
    for metric in shown:
        unit = f" ({metric['unit']})" if metric["unit"] else ""
        table.add_column(f"{metric['title']}{unit}", justify="right")
    table.add_column("missed", justify="right")
    table.add_column("spurious", justify="right")
    for label, entry in summary["labels"].items():
        cells = [estimate_text(entry[metric["name"]]["mean"]) for metric in shown]
        table.add_row(label, *cells, *_counts(entry["outcomes"]))
    cells = [estimate_text(summary["class_mean"][metric["name"]]) for metric in shown]
    table.add_row("class mean", *cells, *_counts(summary["outcomes"]), style="bold")
    return table


def worst_table(summary: Mapping[str, Any]) -> Table:
    """The cases with misses, then those of lowest mean Dice."""
    table = Table(title="worst cases first")
    for column, justify in (("case", "left"), ("mean Dice", "right"), ("missed", "right"), ("spurious", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for case in summary["cases"][:WORST_SHOWN]:
        dice = "all absent" if case["dice"] is None else f"{case['dice']:.4f}"
        table.add_row(case["case"], dice, str(case["missed"]), str(case["spurious"]))
    return table


def problem_table(problems: Sequence[Problem]) -> Table:
    """Everything that is wrong with the input, one line a problem."""
    table = Table(title=f"{len(problems)} problems")
    for column in ("case", "rule", "found", "way out"):
        table.add_column(column, overflow="fold")
    for problem in problems:
        table.add_row(problem.case, problem.rule, problem.found, problem.way_out)
    return table


def comparison_table(differences: Sequence[PairedDifference]) -> Table:
    """Differences to the other predictions; a winner only where the interval leaves zero out."""
    table = Table(title="paired comparison, this minus the other")
    for column in ("label", "metric", "this", "other", "difference", "p (Holm)", "verdict"):
        table.add_column(column, justify="left" if column in ("label", "metric", "verdict") else "right")
    for d in differences:
        difference = estimate_text(estimate_json(d.difference), signed=True)
        table.add_row(d.label, d.metric, f"{d.this:.4f}", f"{d.other:.4f}", difference, f"{d.p_holm:.3g}", d.verdict)
    return table


def estimate_text(estimate: Mapping[str, Any], signed: bool = False) -> str:
    """ "0.893 [0.881, 0.904] n=52", with "few" where fewer than 20 patients stand behind it."""
    if estimate["value"] is None:
        return "– n=0"
    form = "+.4f" if signed else ".3f"
    low, high = estimate["low"], estimate["high"]
    interval = "" if low is None or high is None else f" [{low:{form}}, {high:{form}}]"
    return f"{estimate['value']:{form}}{interval} n={estimate['n']}{' few' if estimate['few'] else ''}"


def _title(summary: Mapping[str, Any]) -> str:
    left_out = f", {summary['num_left_out']} left out" if summary["num_left_out"] else ""
    return f"{summary['num_cases']} cases of {summary['num_patients']} patients{left_out}"


def _counts(outcomes: Mapping[str, int]) -> tuple[str, str]:
    return str(outcomes["missed"] + outcomes["disjoint"]), str(outcomes["spurious"])
