"""Pack volumes and data as text inside a page: gzip and base64, which browsers decode by themselves."""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medseg.figures.canvas import label_palette
from medseg.figures.viewer.view import MAX_VOXELS, Channel, View


def pack(data: bytes, level: int = 6) -> str:
    """Compress bytes to base64 text; the same bytes always give the same text."""
    return base64.b64encode(gzip.compress(data, level, mtime=0)).decode("ascii")


def pack_volume(volume: np.ndarray) -> str:
    """Pack a uint8 volume (x, y, z), x fastest."""
    return pack(volume.tobytes(order="F"))


def pack_json(value: Any) -> str:
    """Pack plain data as JSON."""
    return pack(
        json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode(errors="backslashreplace"),
        level=9,
    )


def unpack(text: str) -> bytes:
    """Return the bytes that `pack` was given."""
    return gzip.decompress(base64.b64decode(text))


# Fewest voxels of a view with several channels, and of any view.
MIN_VOXELS_WITH_CHANNELS = 200_000
MIN_VOXELS = 50_000


def fitted(view: View, max_bytes: int, max_voxels: int = MAX_VOXELS) -> tuple[View, dict[str, str]]:
    """Thin a view until its packed volumes fit a number of bytes.

    Resolution is reduced first. If fewer than 200,000 voxels would be left, channels are dropped, the last one first,
    and then resolution again. A view of 50,000 voxels with one channel is returned even if it does not fit.

    Returns:
        The view and its packed volumes by the name of their block.
    """
    full, voxels = view, max_voxels
    while True:
        thin = full.thinned(voxels)
        packed = {name: pack_volume(volume) for name, volume in thin.volumes().items()}
        size = num_bytes(packed)
        has_channels = len(full.channels) > 1
        floor = MIN_VOXELS_WITH_CHANNELS if has_channels else MIN_VOXELS
        if size <= max_bytes or (thin.num_voxels <= floor and not has_channels):
            return thin, packed
        if thin.num_voxels <= floor:
            full, voxels = full.without_last_channel(), min(2 * thin.num_voxels, max_voxels)
            continue
        voxels = min(int(thin.num_voxels * 0.9 * max_bytes / size), thin.num_voxels * 3 // 4)
        voxels = max(voxels, floor)


def num_bytes(packed: dict[str, str]) -> int:
    """Return the size of packed volumes in a page."""
    return sum(map(len, packed.values()))


def view_data(view: View, name: str, label_values: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Return what the viewer's scripts need to draw one view, as plain data.

    Args:
        view: the view.
        name: name of the case.
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
    """Round a number to significant digits; None if it is not finite."""
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
