"""Guess the modality of an image, which decides the normalisation, from the name of its channel or its values."""

from __future__ import annotations

import re
from pathlib import Path

from medseg.datasets.layouts.label_values import are_pictures, dimensions
from medseg.errors import GeometryError, VolumeError
from medseg.volumes import read_channels

# Words of channel names. Datasets of nnU-Net and the Decathlon name channels so, and BIDS and BraTS name files so.
_WORDS = {
    "MR": ("mr", "mri", "t1", "t1w", "t1c", "t1ce", "t1gd", "t1n", "t1wce", "t2", "t2w", "t2f", "t2star", "t2s",
           "flair", "dwi", "adc", "pd", "pdw", "swi"),
    "CT": ("ct",),
    "PET": ("pet",),
    "US": ("us", "ultrasound"),
}  # fmt: skip
UNKNOWN = "unknown"
# Below this value in HU, a voxel of a CT scan is air. Other modalities have no such negative values.
AIR_HU = -900
LOWEST_HU = -10_000


def modality_of_name(name: str) -> str:
    """Return "MR", "CT", "PET" or "US" if a word of a channel's name says so, otherwise an empty string."""
    words = set(re.split(r"[\W_]+", name.lower()))
    return next((modality for modality, known in _WORDS.items() if words & set(known)), "")


def modality_of_image(path: Path) -> str:
    """Return "CT" if the image holds Hounsfield units, "RGB" or "grey" for a picture, otherwise "unknown"."""
    try:
        if are_pictures([path]):
            return "RGB" if dimensions(path)[1] == 3 else "grey"
        array = read_channels(path, is_quiet=True)[0].array
    except (VolumeError, GeometryError):
        return UNKNOWN
    return "CT" if LOWEST_HU < array.min() < AIR_HU and array.max() > 0 else UNKNOWN
