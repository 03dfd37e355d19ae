"""metrics.csv as text, and the tables on the terminal."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.table import Table

from medseg.evaluation.comparison import PairedDifference
from medseg.evaluation.metrics import ASSD, DICE, HD95, NSD, OBJECT_METRICS, Metric
from medseg.evaluation.pairs import Problem
from medseg.evaluation.scoring import LabelScore
from medseg.evaluation.statistics import FEW_PATIENTS
from medseg.evaluation.summary import estimate_json

MAX_WORST_CASES = 10
SHOWN_METRICS = (DICE.name, NSD.name, HD95.name, ASSD.name)
MIN_LABEL_WIDTH = 8
# Space and lines around the text of a column.
COLUMN_FRAME = 3


def metrics_csv(rows: Sequence[LabelScore], metrics: Sequence[Metric], size_unit: str) -> str:
    """Format one row per case and structure as CSV.

    Column `<metric>` holds the counted value, `<metric>_raw` the value before the policy for empty masks.

    Args:
        rows: one per case and structure.
        metrics: the metrics to write.
        size_unit: "ml" or "mm2".
    """
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
        numbers += [row.raw[name] for name in names]
        # An undefined value is an empty field, an infinite distance to an empty mask is "inf".
        writer.writerow(fixed + ["" if math.isnan(value) else f"{value:.9g}" for value in numbers])
    return text.getvalue()


def evaluation_tables(
    summary: Mapping[str, Any], problems: Sequence[Problem], comparison: Sequence[PairedDifference], width: int
) -> list[Table]:
    """Build the tables that the terminal shows: problems, worst cases, metrics, paired comparison.

    Args:
        summary: content of summary.json.
        problems: problems that kept cases out.
        comparison: paired differences to other predictions.
        width: columns of the terminal. Numbers are never cut; columns that do not fit go to a further table.
    """
    tables = [_problem_table(problems)] if problems else []
    tables += [_worst_table(summary), *_metric_tables(summary, width)]
    if comparison:
        tables.append(_narrowed(_comparison_table(comparison), width, wide_columns=("label",)))
    return tables


def _metric_tables(summary: Mapping[str, Any], width: int) -> list[Table]:
    """One row per structure and one for the class mean; each number has its interval and n below it."""
    level = round(100 * summary["interval_level"])
    caption = (
        f"means with {level} % intervals, patients resampled; few: under {FEW_PATIENTS} patients. {summary['policy']}"
    )
    chosen = [
        [metric for metric in summary["metrics"] if metric["name"] in names]
        for names in (SHOWN_METRICS, OBJECT_METRICS)
    ]
    tables = [
        _narrowed(_means_table(summary, part), width, wide_columns=("label",))
        for metrics in chosen
        for part in _split(summary, metrics, width)
    ]
    tables[-1].caption, tables[-1].caption_justify = caption, "left"
    return tables


def _split(
    summary: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], width: int
) -> Iterable[list[Mapping[str, Any]]]:
    """Split metrics into groups whose columns fit the width beside the label and the counts."""
    group: list[Mapping[str, Any]] = []
    for metric in metrics:
        if group and _least_width(_means_table(summary, [*group, metric]), ("label",)) > width:
            yield group
            group = []
        group.append(metric)
    if group:
        yield group


def _means_table(summary: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> Table:
    left_out = f", {summary['num_left_out']} left out" if summary["num_left_out"] else ""
    title = f"{_count(summary['num_cases'], 'case')} of {_count(summary['num_patients'], 'patient')}{left_out}"
    table = Table(title=title, show_lines=True)
    table.add_column("label", overflow="fold")
    for metric in metrics:
        unit = f" ({metric['unit']})" if metric["unit"] else ""
        table.add_column(f"{metric['title']}{unit}", justify="right")
    table.add_column("missed / spurious", justify="right")
    entries = [(label, entry, {name: entry[name]["mean"] for name in _names(metrics)}, "")
               for label, entry in summary["labels"].items()]  # fmt: skip
    entries.append(("class mean", summary, summary["class_mean"], "bold"))
    for label, entry, estimates, style in entries:
        cells = [_estimate_lines(estimates[metric["name"]], 2 if metric["unit"] else 3) for metric in metrics]
        outcomes = entry["outcomes"]
        counts = f"{outcomes['missed'] + outcomes['disjoint']} / {outcomes['spurious']}"
        table.add_row(label, *cells, counts, style=style)
    return table


def _worst_table(summary: Mapping[str, Any]) -> Table:
    table = Table(title="worst cases first")
    table.add_column("case", overflow="fold")
    for column in ("mean Dice", "missed", "spurious"):
        table.add_column(column, justify="right", no_wrap=True)
    for case in summary["cases"][:MAX_WORST_CASES]:
        dice = "all absent" if case["dice"] is None else f"{case['dice']:.4f}"
        table.add_row(case["case"], dice, str(case["missed"]), str(case["spurious"]))
    return table


def _problem_table(problems: Sequence[Problem]) -> Table:
    table = Table(title=_count(len(problems), "problem"))
    for column in ("case", "rule", "found", "what to do"):
        table.add_column(column, overflow="fold")
    for problem in problems:
        table.add_row(problem.case, problem.rule, problem.found, problem.way_out)
    return table


def _comparison_table(differences: Sequence[PairedDifference]) -> Table:
    table = Table(title="paired comparison, this minus the other")
    table.add_column("label", overflow="fold")
    table.add_column("metric")
    for column in ("this", "other", "difference", "p (Holm)"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    for d in differences:
        difference = _difference_text(estimate_json(d.difference))
        table.add_row(d.label, d.metric, f"{d.this:.4f}", f"{d.other:.4f}", difference, f"{d.p_holm:.3g}", d.verdict)
    return table


def _narrowed(table: Table, width: int, wide_columns: Sequence[str]) -> Table:
    """Narrow the columns of a table that is wider than the terminal to their longest word.

    Rich wraps a column at spaces as long as it is as wide as its longest word; below that it cuts words, and the end of
    an interval with them.

    Args:
        table: the table.
        width: columns of the terminal.
        wide_columns: columns that share the rest of the width; their words may be folded.
    """
    natural = sum(max(_line_lengths(column)) + COLUMN_FRAME for column in table.columns) + 1
    if natural > width:
        least = _least_width(table, wide_columns)
        for column in table.columns:
            if column.header not in wide_columns:
                column.width = _longest_word(column)
            elif least > width:
                column.width = MIN_LABEL_WIDTH
    return table


def _least_width(table: Table, wide_columns: Sequence[str]) -> int:
    columns = [
        min(_longest_word(column), MIN_LABEL_WIDTH) if column.header in wide_columns else _longest_word(column)
        for column in table.columns
    ]
    return sum(columns) + COLUMN_FRAME * len(columns) + 1


def _texts(column: Any) -> list[str]:
    return [str(column.header), *map(str, column.cells)]


def _line_lengths(column: Any) -> list[int]:
    return [cell_len(line) for text in _texts(column) for line in text.splitlines()]


def _longest_word(column: Any) -> int:
    return max(cell_len(word) for text in _texts(column) for word in text.split())


def _estimate_lines(estimate: Mapping[str, Any], digits: int) -> str:
    """Format value, interval and n on one line each ("0.893", "0.881–0.904", "n=52 few")."""
    if estimate["value"] is None:
        return "–\n\nn=0"
    low, high = estimate["low"], estimate["high"]
    interval = "no interval" if low is None or high is None else f"{low:.{digits}f}–{high:.{digits}f}"
    return f"{estimate['value']:.{digits}f}\n{interval}\n{_sample_size(estimate)}"


def _difference_text(estimate: Mapping[str, Any]) -> str:
    """Format as "+0.0120 [+0.0031, +0.0207] n=52"."""
    if estimate["value"] is None:
        return "– n=0"
    low, high = estimate["low"], estimate["high"]
    interval = "no interval" if low is None or high is None else f"[{low:+.4f}, {high:+.4f}]"
    return f"{estimate['value']:+.4f} {interval} {_sample_size(estimate)}"


def _sample_size(estimate: Mapping[str, Any]) -> str:
    return f"n={estimate['n']}{' few' if estimate['few'] else ''}"


def _names(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    return [metric["name"] for metric in metrics]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
