"""Read a table that names the values or the colours of label maps."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medseg.errors import ManifestError, one_line

# Files that data sets bring along: our own, Kaggle's CamVid, SegNet's CamVid, BIDS.
TABLE_NAMES = ("labels.csv", "labels.tsv", "labels.txt", "class_dict.csv", "label_colors.txt", "dseg.tsv")
_VALUE_COLUMNS = ("value", "index", "id", "label")
_NAME_COLUMNS = ("name", "class", "structure", "abbreviation")
_COLOR_COLUMNS = (("r", "g", "b"), ("red", "green", "blue"))
_COLOR_LINE = re.compile(r"(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\S.*)")
_VALUE_LINE = re.compile(r"(-?\d+)[\s,:=]+(\S.*)")


@dataclass(frozen=True)
class LabelTable:
    """Names of the values in label maps.

    Attributes:
        path: the file.
        names: name of each value, in the order of the file; a colour is 65536·red + 256·green + blue.
        has_colors: the values are colours.
    """

    path: Path
    names: Mapping[int, str]
    has_colors: bool


def find_table(folder: Path) -> LabelTable | None:
    """Read the table in the data set's folder that has one of the usual names, or return None.

    Raises:
        ManifestError: there are several, or it cannot be read.
    """
    found = [folder / name for name in TABLE_NAMES if (folder / name).is_file()]
    found += sorted(folder.glob("derivatives/**/*dseg.tsv")) if not found else []
    if len(found) > 1:
        raise ManifestError(
            f"{folder}: both {found[0].name} and {found[1].name} could name the labels; choose one with --labels"
        )
    return read_table(found[0]) if found else None


def read_table(path: Path) -> LabelTable:
    """Read a table of labels.

    The file is a CSV or TSV file with the columns `name` and `value` (BIDS: `index`), or `name`, `r`, `g` and `b`; or
    text with one label per line: `1 liver`, `128 64 128 road`, or names alone, which are numbered from 0.

    Raises:
        ManifestError: it cannot be read, is none of these, or names a value twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: cannot be read ({one_line(error)}); give a table of labels as text") from None
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        raise ManifestError(f"{path}: names no label; add one line per label")
    rows = _rows_of_columns(lines) or _rows_of_lines(lines)
    if rows is None:
        raise ManifestError(
            f"{path}: is no table of labels; expected the columns name and value, or name, r, g and b, or one line per "
            "label such as `1 liver` or `128 64 128 road`"
        )
    has_colors = any(len(key) == 3 for key, _ in rows)
    names: dict[int, str] = {}
    for key, name in rows:
        if max(key) > 255 and has_colors:
            raise ManifestError(f"{path}: {name} has a colour {key} outside 0..255; correct it")
        value = (key[0] << 16 | key[1] << 8 | key[2]) if has_colors else key[0]
        if value in names:
            raise ManifestError(
                f"{path}: {names[value]} and {name} have the same {'colour' if has_colors else 'value'}"
            )
        if name in names.values():
            raise ManifestError(f"{path}: {name} is given twice; name each label once")
        names[value] = name
    return LabelTable(path, names, has_colors)


def _rows_of_columns(lines: Sequence[str]) -> list[tuple[tuple[int, ...], str]] | None:
    """Return the numbers and the name of each row of a table whose first line names its columns, else None."""
    delimiter = "\t" if "\t" in lines[0] else ";" if ";" in lines[0] else ","
    head, *rest = csv.reader(io.StringIO("\n".join(lines)), delimiter=delimiter, skipinitialspace=True)
    columns = {column.strip().lower(): number for number, column in enumerate(head)}
    name = next((columns[column] for column in _NAME_COLUMNS if column in columns), None)
    colors = next((columns_of for columns_of in _COLOR_COLUMNS if set(columns_of) <= set(columns)), None)
    keys = colors or tuple(column for column in _VALUE_COLUMNS if column in columns)[:1]
    if name is None or not keys:
        return None
    try:
        return [(tuple(int(row[columns[key]]) for key in keys), row[name].strip()) for row in rest]
    except (ValueError, IndexError):
        return None


def _rows_of_lines(lines: Sequence[str]) -> list[tuple[tuple[int, ...], str]] | None:
    """Return the numbers and the name of each line of text, else None."""
    for pattern in (_COLOR_LINE, _VALUE_LINE):
        found = [pattern.fullmatch(line) for line in lines]
        if all(found):
            return [
                (tuple(map(int, match.groups()[:-1])), match.groups()[-1].strip())
                for match in found
                if match is not None
            ]
    if all(re.fullmatch(r"[^\d\W].*", line) and "," not in line for line in lines):
        return [((number,), name) for number, name in enumerate(lines)]
    return None
