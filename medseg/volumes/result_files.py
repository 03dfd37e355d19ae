"""Names of the files that belong to a segmentation: its record, and its maps of entropy and probabilities."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from medseg.volumes.formats import DICOM_SEG_SUFFIX, stem_of, suffix_of

# A DICOM Segmentation cannot hold the numbers of a map, and PNG cannot hold probabilities.
MAP_SUFFIX_OF_DICOM_SEG = ".nii.gz"
PROBABILITY_SUFFIX_OF_PNG = ".tif"
# Windows does not allow these characters in a file name, and no system allows a slash.
NOT_IN_FILE_NAMES = re.compile(r'[\\/:*?"<>|\x00-\x1f]')


def map_names(has_entropy: bool, probability_labels: Iterable[str]) -> list[str]:
    """Return the names of the maps beside a segmentation."""
    return ["entropy"] * has_entropy + [f"probability_{label}" for label in probability_labels]


def map_path(path: Path, name: str) -> Path:
    """Return the file of a map beside a segmentation.

    Args:
        path: the segmentation's file.
        name: one of `map_names`.
    """
    suffix = MAP_SUFFIX_OF_DICOM_SEG if is_dicom_seg(path) else suffix_of(path)
    if suffix == ".png" and name.startswith("probability_"):
        suffix = PROBABILITY_SUFFIX_OF_PNG
    return path.with_name(f"{_stem(path)}_{NOT_IN_FILE_NAMES.sub('_', name)}{suffix}")


def provenance_path(path: str | Path) -> Path:
    """Return the file of a segmentation's record, which has the suffix .json instead of the image's."""
    return Path(path).with_name(_stem(Path(path)) + ".json")


def is_dicom_seg(path: Path) -> bool:
    """Return True if a segmentation of that name is a DICOM Segmentation."""
    return path.suffix.lower() == DICOM_SEG_SUFFIX


def _stem(path: Path) -> str:
    return path.stem if is_dicom_seg(path) else stem_of(path)
