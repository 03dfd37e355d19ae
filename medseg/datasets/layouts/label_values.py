"""Read which values the label maps of a data set hold, and what they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg.datasets.layouts.layout import CaseFiles
from medseg.errors import GeometryError, ManifestError, VolumeError
from medseg.volumes import SUFFIXES, read_channel_grid, read_label_map, suffix_of

PICTURES = ("png", "tiff", "jpeg")
MAX_LABELS = 10_000  # more values are those of an image or an instance map
IGNORED_IN_PICTURES = 255  # as in Pascal VOC and Cityscapes


@dataclass(frozen=True)
class LabelScheme:
    """Labels of a data set.

    Attributes:
        labels: value of each label by name.
        ignore_label: value of voxels that count neither in the loss nor in the metrics.
        file_values: label value of each value in the files; None if they are the same.
    """

    labels: Mapping[str, int]
    ignore_label: int | None = None
    file_values: Mapping[int, int] | None = None


def read_label_values(cases: Sequence[CaseFiles]) -> tuple[dict[str, frozenset[int]], list[str]]:
    """Read every label map.

    Returns:
        The values in the label map of each case that can be read, and one line for each that cannot.
    """
    values: dict[str, frozenset[int]] = {}
    problems: list[str] = []
    for case in cases:
        try:
            values[case.id] = _values_of(case.label)
        except (VolumeError, GeometryError) as error:
            problems.append(f"case {case.id}: {error}")
    return values, problems


def _values_of(path: Path) -> frozenset[int]:
    array = read_label_map(path).array
    if array.dtype == np.uint8:
        return frozenset(np.flatnonzero(np.bincount(array.ravel(order="K"), minlength=256)).tolist())
    return frozenset(np.unique(array).tolist())


def label_scheme(values: set[int], folder: Path, are_pictures: bool) -> LabelScheme:
    """Name the values of the label maps, where nothing else names them.

    0 is the background. In pictures with three values or more, 255 is the ignore label if 254 is absent. Negative
    values, which a manifest does not take, become values above the others.

    Raises:
        ManifestError: there is no value besides 0, or there are more than a label map has.
    """
    if len(values) > MAX_LABELS:
        raise ManifestError(
            f"{folder}: the label maps hold {len(values)} different values, as images or instance maps do; give label "
            "maps with one value per class"
        )
    foreground = sorted(values - {0})
    if not foreground:
        raise ManifestError(f"{folder}: the label maps hold nothing but 0; add label maps with a structure")
    ignored = None
    if are_pictures and len(values) > 2 and IGNORED_IN_PICTURES in values and IGNORED_IN_PICTURES - 1 not in values:
        ignored = IGNORED_IN_PICTURES
        foreground.remove(ignored)
    labels, file_values = {"background": 0}, {0: 0}
    free = max(*foreground, 0, ignored or 0) + 1
    for value in foreground:
        labels[f"label {value}"] = file_values[value] = value if value > 0 else free
        free += value < 0
    if ignored is not None:
        file_values[ignored] = ignored
    is_same = all(stored == value for stored, value in file_values.items())
    return LabelScheme(labels, ignored, None if is_same else file_values)


def are_pictures(paths: Sequence[Path]) -> bool:
    """Return whether the files are pictures, which have no position in a patient, by their names."""
    return all(SUFFIXES.get(suffix_of(path)) in PICTURES for path in paths)


def dimensions(path: Path) -> tuple[int, int]:
    """Return the number of spatial axes, 2 or 3, and of channels of an image file; one slice has 2 axes."""
    grid, num_channels = read_channel_grid(path)
    return 2 if grid.shape[2:] in ((), (1,)) else 3, num_channels
