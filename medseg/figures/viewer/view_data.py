"""What the viewer's scripts must know of a view beside its volumes, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medseg.figures.label_colors import label_palette
from medseg.figures.viewer.view import Channel, View


def view_data(view: View, name: str, label_values: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """One view.

    Args:
        view: what is shown.
        name: of the case.
        label_values: structure → its values in the label maps, in the order of the page's structures.
    """
    byte_of = {value: number for number, value in enumerate(view.values, start=1)}
    return {
        "name": name,
        "dims": list(view.prediction.shape),
        "spacing": [short(step) for step in view.spacing],
        "affine": [[short(value, 7) for value in row] for row in view.affine[:3]],
        "panels": [vars(panel) for panel in view.panels],
        "tilt": round(view.tilt_degrees, 2),
        "compared": view.reference is not None,
        "values": list(view.values),
        "colors": label_palette(len(view.values)),
        "structures": [[byte_of[v] for v in values if v in byte_of] for values in label_values.values()],
        "channels": [_channel(channel) for channel in view.channels],
        "notes": list(view.remarks),
    }


def short(value: float | None, digits: int = 5) -> float | None:
    """A number rounded to so many digits; None where it is not finite."""
    if value is None or not math.isfinite(value):
        return None
    rounded = float(np.format_float_positional(value, digits, fractional=False))
    return int(rounded) if rounded.is_integer() else rounded


def _channel(channel: Channel) -> dict[str, Any]:
    grey = channel.grey
    return {
        "name": channel.name,
        "modality": grey.modality,
        "values": [short(value, 6) for value in grey.values],
        "windows": {name: [short(width, 6), short(level, 6)] for name, (width, level) in grey.windows.items()},
    }
