"""Read which values the label maps of a data set hold, and what they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from medseg.datasets.layouts.label_table import LabelTable
from medseg.errors import GeometryError, ManifestError, VolumeError
from medseg.volumes import SUFFIXES, read_channel_grid, read_colored_label_map, read_label_map, suffix_of

PICTURES = ("png", "tiff", "jpeg")
MAX_LABELS = 10_000  # more values are those of an image or an instance map
IGNORED = 255  # as in Pascal VOC and Cityscapes
_VOID = ("void", "ignore", "ignored", "unlabeled", "unlabelled", "unknown", "unlabel")
_BACKGROUND = ("background", "bg", "_background_", "__background__")


@dataclass(frozen=True)
class LabelScheme:
    """Labels of a data set.

    Attributes:
        labels: value of each label by name.
        ignore_label: value of voxels that count neither in the loss nor in the metrics.
        file_values: label value of each value or colour in the files; None if they are the same.
        has_colors: the values in the files are colours.
    """

    labels: Mapping[str, int]
    ignore_label: int | None = None
    file_values: Mapping[int, int] | None = None
    has_colors: bool = False

    @property
    def content(self) -> dict[str, Any]:
        """The keys of a manifest."""
        content: dict[str, Any] = {"labels": dict(self.labels), "ignore_label": self.ignore_label}
        if self.file_values is not None and self.has_colors:
            return content | {"file_colors": {f"#{color:06x}": value for color, value in self.file_values.items()}}
        return content if self.file_values is None else content | {"file_values": dict(self.file_values)}


def read_label_values(
    label_of: Mapping[str, Path], are_colors: bool = False
) -> tuple[dict[str, frozenset[int]], list[str]]:
    """Read every label map.

    Args:
        label_of: label map of each case by id.
        are_colors: each colour of a picture is a label.

    Returns:
        The values in the label map of each case that can be read, and one line for each that cannot.
    """
    values: dict[str, frozenset[int]] = {}
    problems: list[str] = []
    for case_id, path in label_of.items():
        try:
            found = path.stat() if path.is_file() else None
            values[case_id] = _values_of(path, are_colors, (found.st_size, found.st_mtime_ns) if found else None)
        except (VolumeError, GeometryError) as error:
            problems.append(f"case {case_id}: {error}")
    return values, problems


@lru_cache(maxsize=100_000)
def _values_of(path: Path, are_colors: bool, version: tuple[int, int] | None) -> frozenset[int]:
    """Read the values once per process and version of the file: a training reads its manifest several times."""
    array = (read_colored_label_map if are_colors else read_label_map)(path).array
    if array.dtype == np.uint8:
        return frozenset(np.flatnonzero(np.bincount(array.ravel(order="K"), minlength=256)).tolist())
    return frozenset(np.unique(array).tolist())


def label_scheme(values: set[int], folder: Path, are_pictures: bool, ignored: int | None = None) -> LabelScheme:
    """Name the values of the label maps, where no table names them.

    0 is the background. In pictures with three values or more, 255 is the ignore label if 254 is absent. Negative
    values, which a manifest does not take, become values above the others.

    Args:
        values: all values that occur.
        folder: the data set's folder, for messages.
        are_pictures: the label maps are pictures.
        ignored: value of the ignore label; None if it is not known.

    Raises:
        ManifestError: there is no value besides 0, or there are more than a label map has.
    """
    if len(values) > MAX_LABELS:
        raise ManifestError(
            f"{folder}: the label maps hold {len(values)} different values, as images or instance maps do; give label "
            "maps with one value per class"
        )
    if ignored is None and are_pictures and len(values) > 2 and values & {254, 255} == {IGNORED}:
        ignored = IGNORED
    foreground = sorted(values - {0, ignored})
    if not foreground:
        raise ManifestError(f"{folder}: the label maps hold nothing but 0; add label maps with a structure")
    free = max(*foreground, 0, ignored or 0) + 1
    labels, file_values = {"background": 0}, {0: 0}
    for value in foreground:
        labels[f"label {value}"] = file_values[value] = value if value > 0 else free
        free += value < 0
    return _scheme(labels, file_values, ignored)


def named_scheme(table: LabelTable, values: set[int], ignored: int | None = None) -> LabelScheme:
    """Take the labels of a table.

    A label called void, ignore or unlabelled is the ignore label. If the value 0 or a colour is another class than the
    background, the classes get the values 1, 2, … in the order of the table, and 0 stays the background, which then
    has no voxel.

    Args:
        table: names of the values or colours.
        values: all values that occur.
        ignored: value of the ignore label; None takes the one whose name says so.

    Raises:
        ManifestError: a value has no name, or a name no label is left.
    """
    unnamed = sorted(values - set(table.names) - {ignored} - (set() if table.has_colors else {0}))
    if unnamed:
        shown = [f"#{value:06x}" if table.has_colors else str(value) for value in unnamed[:8]]
        raise ManifestError(
            f"{table.path}: has no name for {', '.join(shown)}{' …' if len(unnamed) > 8 else ''}, found in the label "
            "maps; add a line for each"
        )
    if ignored is None:
        ignored = next((value for value, name in table.names.items() if name.lower() in _VOID), None)
    classes = {value: name for value, name in table.names.items() if value != ignored}
    background = next((value for value, name in classes.items() if name.lower() in _BACKGROUND), None)
    if background is None and not table.has_colors and 0 not in classes:
        background = 0
    classes.pop(background, None)  # type: ignore[arg-type]
    if not classes:
        raise ManifestError(f"{table.path}: names no label besides the background; add one")
    is_kept = not table.has_colors and background == 0 and min(classes) > 0
    numbers = {value: value if is_kept else number for number, value in enumerate(classes, start=1)}
    labels = {"background": 0, **{name: numbers[value] for value, name in classes.items()}}
    file_values = {**({} if background is None else {background: 0}), **numbers}
    return _scheme(labels, file_values, ignored, table.has_colors)


def _scheme(
    labels: dict[str, int], file_values: dict[int, int], ignored: int | None, has_colors: bool = False
) -> LabelScheme:
    """Give the ignored value its own number in files, if it can keep it, otherwise 255 or one above the labels."""
    label = ignored
    if ignored is not None:
        if has_colors or ignored < 0 or ignored in labels.values():
            label = IGNORED if IGNORED not in labels.values() else max(labels.values()) + 1
        file_values[ignored] = label if label is not None else IGNORED
    is_same = not has_colors and all(stored == value for stored, value in file_values.items())
    return LabelScheme(labels, label, None if is_same else file_values, has_colors)


def are_pictures(paths: Sequence[Path]) -> bool:
    """Return whether the files are pictures, which have no position in a patient, by their names."""
    return all(SUFFIXES.get(suffix_of(path)) in PICTURES for path in paths)


def dimensions(path: Path) -> tuple[int, int]:
    """Return the number of spatial axes, 2 or 3, and of channels of an image file; one slice has 2 axes."""
    grid, num_channels = read_channel_grid(path)
    return 2 if grid.shape[2:] in ((), (1,)) else 3, num_channels
