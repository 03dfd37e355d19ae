"""The table of an earlier evaluation, read back to compare with."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from medseg.errors import EvaluationError
from medseg.evaluation.comparison import COMPARED


def read_metrics_csv(path: Path) -> dict[tuple[str, str], dict[str, float]]:
    """The counted values of an earlier metrics.csv, or of any CSV with the columns case, label and a metric.

    Raises:
        EvaluationError: no such columns, or a value that is not a number.
    """
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        columns = [name for name in COMPARED if name in (reader.fieldnames or ())]
        if not columns or not {"case", "label"} <= set(reader.fieldnames or ()):
            raise EvaluationError(
                f"{path}: needs the columns case, label and one of {', '.join(COMPARED)}, found {reader.fieldnames}"
            )
        table = {}
        for record in reader:
            try:
                values = {name: float(record[name]) if record[name] else math.nan for name in columns}
            except ValueError as error:
                raise EvaluationError(f"{path} line {reader.line_num}: {error}; write numbers or nothing") from error
            table[record["case"], record["label"]] = values
    return table
