"""256 grey levels of an image that a page can hold, and the windows it is looked at through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

# Radiology's usual (width, level) in HU.
CT_WINDOWS = {
    "soft tissue": (400.0, 40.0),
    "lung": (1500.0, -600.0),
    "liver": (150.0, 90.0),
    "bone": (2500.0, 480.0),
    "brain": (80.0, 40.0),
}
# HU at these positions of the 256 levels: fine where narrow windows look, coarse in air and bone. Together they span
# every window above.
_CT_KNOTS = ((0, -1350.0), (56, -160.0), (216, 240.0), (255, 1730.0))
PERCENTILES = (0.5, 99.5)
PERCENTILE_WINDOW = "percentiles 0.5–99.5"
# An image whose lowest voxel lies in this range is taken for CT where nobody says what it is: air is -1000 HU.
_AIR_HU = (-3100, -500)
_SAMPLE = 1_000_000


@dataclass(frozen=True, eq=False)
class GreyLevels:
    """What the 256 stored levels mean.

    Args:
        modality: as declared, or what the values suggest.
        values: the image value of each level, increasing, shape (256,).
        windows: name → (width, level) in image values; the first is shown first.
        reason: why the image is taken for this modality; empty where that was declared.
    """

    modality: str
    values: np.ndarray
    windows: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    reason: str = ""

    def encode(self, image: np.ndarray) -> np.ndarray:
        """The nearest level of each voxel, uint8; values beyond the ends take the end, what is no number the first."""
        halfway = (self.values[1:] + self.values[:-1]) / 2
        levels = np.searchsorted(halfway, image, side="right").astype(np.uint8)
        if image.dtype.kind == "f":
            levels[np.isnan(image)] = 0
        return levels

    @property
    def limits(self) -> tuple[float, float]:
        """Image values shown black and white through the first window."""
        width, level = next(iter(self.windows.values()))
        return level - width / 2, level + width / 2

    def shades(self, window: str) -> np.ndarray:
        """Brightness 0 to 1 of each level through a window, shape (256,)."""
        width, level = self.windows[window]
        return np.clip((self.values - (level - width / 2)) / width, 0, 1)


def grey_levels(image: np.ndarray, modality: str | None = None) -> GreyLevels:
    """Choose levels and windows for an image: HU windows for CT, percentiles of the non-zero voxels for the rest.

    Args:
        image: real numbers of any type and shape.
        modality: "CT", "MR", …; None looks at the values. An image without any non-zero voxel gets one grey.
    """
    reason = ""
    if modality is None:
        lowest = float(np.fmin.reduce(image, axis=None)) if image.size else 0.0
        is_whole = image.dtype.kind in "ui" or bool((image.ravel()[:1000] % 1 == 0).all())
        if is_whole and _AIR_HU[0] <= lowest <= _AIR_HU[1]:
            modality, reason = "CT", f"taken for CT because its lowest value is {lowest:.0f}"
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
    # order="K" reads the file's own order, so that nothing is copied
    values = image.ravel(order="K")
    values = values[:: max(1, values.size // _SAMPLE)]
    values = values[(values != 0) & np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(values, PERCENTILES))
    return (low, high) if high > low else (low - 0.5, low + 0.5)
