"""Quantise an image to 256 grey levels for a page, and choose the windows to view it through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

# The usual windows of radiology: (width, level) in HU.
CT_WINDOWS = {
    "soft tissue": (400.0, 40.0),
    "lung": (1500.0, -600.0),
    "liver": (150.0, 90.0),
    "bone": (2500.0, 480.0),
    "brain": (80.0, 40.0),
}
# (level, HU) knots of the 256 levels: fine where the narrow windows lie, coarse in air and bone. They span every window
# above.
_CT_KNOTS = ((0, -1350.0), (56, -160.0), (216, 240.0), (255, 1730.0))
PERCENTILES = (0.5, 99.5)
PERCENTILE_WINDOW = "percentiles 0.5–99.5"
# An image of unknown modality counts as CT if its lowest value lies in this range, because air has -1000 HU.
_LOWEST_CT_HU = (-3100, -500)
# Percentiles are computed from about so many voxels.
_MAX_SAMPLES = 1_000_000


@dataclass(frozen=True, eq=False)
class GreyLevels:
    """Image values of the 256 levels, and windows.

    Args:
        modality: as declared, or guessed from the values.
        values: the image value of each level, increasing, shape (256,).
        windows: name → (width, level) in image values; the first is the default.
        reason: why the image counts as this modality; empty if the modality was declared.
    """

    modality: str
    values: np.ndarray
    windows: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    reason: str = ""

    def encode(self, image: np.ndarray) -> np.ndarray:
        """Return the nearest level of each voxel as uint8; NaN takes the first level."""
        halfway = (self.values[1:] + self.values[:-1]) / 2
        levels = np.searchsorted(halfway, image, side="right").astype(np.uint8)
        if image.dtype.kind == "f":
            levels[np.isnan(image)] = 0
        return levels

    @property
    def limits(self) -> tuple[float, float]:
        """Image values that the default window shows black and white."""
        width, level = next(iter(self.windows.values()))
        return level - width / 2, level + width / 2

    def shades(self, window: str) -> np.ndarray:
        """Return the brightness of each level through a window, 0 to 1, shape (256,)."""
        width, level = self.windows[window]
        return np.clip((self.values - (level - width / 2)) / width, 0, 1)


def grey_levels(image: np.ndarray, modality: str | None = None) -> GreyLevels:
    """Choose levels and windows: HU windows for CT, else percentiles 0.5 to 99.5 of the non-zero voxels.

    Args:
        image: real numbers of any type and shape.
        modality: "CT", "MR", …; None guesses from the values. An image of a single value gets one grey.
    """
    reason = ""
    if modality is None:
        lowest = float(np.fmin.reduce(image, axis=None)) if image.size else 0.0
        is_whole = image.dtype.kind in "ui" or bool((image.ravel()[:1000] % 1 == 0).all())
        if is_whole and _LOWEST_CT_HU[0] <= lowest <= _LOWEST_CT_HU[1]:
            modality, reason = "CT", f"shown as CT because its lowest value is {lowest:.0f}"
        else:
            modality = "image"
    if modality.upper() == "CT":
        positions, hounsfield = zip(*_CT_KNOTS, strict=True)
        return GreyLevels("CT", np.interp(np.arange(256), positions, hounsfield), CT_WINDOWS, reason)
    low, high = _percentiles(image)
    width = high - low
    values = low + width * np.arange(256) / 255
    return GreyLevels(modality, values, {PERCENTILE_WINDOW: (width, low + width / 2)}, reason)


def _percentiles(image: np.ndarray) -> tuple[float, float]:
    # order="K" keeps the order in memory and so avoids a copy.
    values = image.ravel(order="K")
    values = values[:: max(1, values.size // _MAX_SAMPLES)]
    values = values[(values != 0) & np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(values, PERCENTILES))
    return (low, high) if high > low else (low - 0.5, low + 0.5)
