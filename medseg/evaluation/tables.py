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
from medseg.evaluation.metrics import BRATS_METRICS, COMPONENT_METRICS, EM_METRICS, Metric
from medseg.evaluation.pairs import Problem
from medseg.evaluation.statistics import FEW
from medseg.evaluation.summary import estimate_json

WORST_SHOWN = 10
SHOWN_METRICS = ("dice", "nsd", "hd95_mm", "assd_mm")
# In a table of their own where they were asked for.
OBJECT_METRICS = tuple(metric.name for metric in (*COMPONENT_METRICS, *BRATS_METRICS, *EM_METRICS))
MAX_COLUMNS = 4


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


def metric_tables(summary: Mapping[str, Any]) -> list[Table]:
    """A row a label and one for the class mean, each number with its interval and n; object metrics apart."""
    level = round(100 * summary["interval_level"])
    caption = f"means with {level} % intervals, patients resampled; few: under {FEW} patients. {summary['policy']}"
    tables = [_means(summary, [metric for metric in summary["metrics"] if metric["name"] in SHOWN_METRICS])]
    objects = [metric for metric in summary["metrics"] if metric["name"] in OBJECT_METRICS]
    tables += [_means(summary, objects[i : i + MAX_COLUMNS]) for i in range(0, len(objects), MAX_COLUMNS)]
    tables[-1].caption, tables[-1].caption_justify = caption, "left"
    return tables


def _means(summary: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title=_title(summary), show_lines=True)
    table.add_column("label")
    for metric in metrics:
        unit = f" ({metric['unit']})" if metric["unit"] else ""
        table.add_column(f"{metric['title']}{unit}", justify="right")
    table.add_column("missed / spurious", justify="right")
    for label, entry in summary["labels"].items():
        means = [estimate_lines(entry[metric["name"]]["mean"], _digits(metric)) for metric in metrics]
        table.add_row(label, *means, _counts(entry["outcomes"]))
    means = [estimate_lines(summary["class_mean"][metric["name"]], _digits(metric)) for metric in metrics]
    table.add_row("class mean", *means, _counts(summary["outcomes"]), style="bold")
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
        difference = difference_text(estimate_json(d.difference))
        table.add_row(d.label, d.metric, f"{d.this:.4f}", f"{d.other:.4f}", difference, f"{d.p_holm:.3g}", d.verdict)
    return table


def estimate_lines(estimate: Mapping[str, Any], digits: int) -> str:
    """Value, interval and n on a line each ("0.893", "0.881–0.904", "n=52"; "few" below 20 patients)."""
    if estimate["value"] is None:
        return "–\n\nn=0"
    low, high = estimate["low"], estimate["high"]
    interval = "no interval" if low is None or high is None else f"{low:.{digits}f}–{high:.{digits}f}"
    return f"{estimate['value']:.{digits}f}\n{interval}\n{_n(estimate)}"


def difference_text(estimate: Mapping[str, Any]) -> str:
    """ "+0.0120 [+0.0031, +0.0207] n=52"."""
    if estimate["value"] is None:
        return "– n=0"
    low, high = estimate["low"], estimate["high"]
    interval = "no interval" if low is None or high is None else f"[{low:+.4f}, {high:+.4f}]"
    return f"{estimate['value']:+.4f} {interval} {_n(estimate)}"


def _n(estimate: Mapping[str, Any]) -> str:
    return f"n={estimate['n']}{' few' if estimate['few'] else ''}"


def _digits(metric: Mapping[str, Any]) -> int:
    return 2 if metric["unit"] else 3


def _title(summary: Mapping[str, Any]) -> str:
    left_out = f", {summary['num_left_out']} left out" if summary["num_left_out"] else ""
    return f"{_count(summary['num_cases'], 'case')} of {_count(summary['num_patients'], 'patient')}{left_out}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _counts(outcomes: Mapping[str, int]) -> str:
    return f"{outcomes['missed'] + outcomes['disjoint']} / {outcomes['spurious']}"
