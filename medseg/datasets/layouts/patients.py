"""Find the patient of each case: by a regular expression, or in a column of a table."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from medseg.datasets.manifest import Case, shortened
from medseg.errors import ManifestError, one_line


def patients_of(cases: Sequence[Case], rule: str) -> dict[str, str]:
    """Return the patient of each case by id.

    Args:
        cases: the cases.
        rule: a regular expression with one group, which is searched in the ids: `(p\\\\d+)_` finds the patient p12 in
            p12_left. Or a CSV or TSV file and the name of a column behind a colon: `visits.csv:patient`. A column of
            that table must hold the case ids, or the patients that BIDS names hold, as `participant_id` does.

    Raises:
        ManifestError: the rule cannot be used, or leaves cases without a patient. The message names them.
    """
    file, colon, column = rule.rpartition(":")
    if colon and Path(file).suffix.lower() in (".csv", ".tsv", ".txt"):
        return _in_table(cases, Path(file), column)
    try:
        pattern = re.compile(rule)
    except re.error as error:
        raise ManifestError(f"patients: {rule!r} is no regular expression ({error}); correct it") from None
    if pattern.groups != 1:
        raise ManifestError(
            f"patients: {rule!r} has {pattern.groups} groups, expected one, in parentheses, for the patient; or give "
            "FILE.csv:COLUMN"
        )
    found = {case.id: pattern.search(case.id) for case in cases}
    without = [case_id for case_id, match in found.items() if match is None or not match[1]]
    if without:
        raise ManifestError(f"patients: {rule!r} finds no patient in {shortened(without)}; correct the expression")
    return {case_id: match[1] for case_id, match in found.items() if match is not None}


def _in_table(cases: Sequence[Case], path: Path, column: str) -> dict[str, str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: cannot be read ({one_line(error)}); give a CSV or TSV file") from None
    first = text.partition("\n")[0]
    delimiter = "\t" if "\t" in first else ";" if ";" in first else ","
    rows = list(csv.DictReader(text.splitlines(), delimiter=delimiter, skipinitialspace=True))
    columns = list(rows[0]) if rows else []
    if column not in columns:
        raise ManifestError(f"{path}: has no column {column!r}; found {', '.join(map(str, columns)) or 'no rows'}")
    best: dict[str, str] = {}
    for key in columns:
        table = {row[key]: row[column] for row in rows if row[key] and row[column]}
        found = {case.id: table.get(case.id, table.get(case.patient, "")) for case in cases}
        found = {case_id: patient for case_id, patient in found.items() if patient}
        best = found if len(found) > len(best) else best
    without = [case.id for case in cases if case.id not in best]
    if without:
        raise ManifestError(f"{path}: no row with a {column} for {shortened(without)}; add the case ids to a column")
    return best
