"""Bytes as text inside a page: gzip and base64, which browsers undo with atob and DecompressionStream."""

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
    """Compressed base64; the same bytes always give the same text."""
    return base64.b64encode(gzip.compress(data, level, mtime=0)).decode("ascii")


def pack_volume(volume: np.ndarray) -> str:
    """A uint8 volume (x, y, z), x fastest."""
    return pack(volume.tobytes(order="F"))


def pack_json(value: Any) -> str:
    """Plain data as compressed JSON."""
    return pack(json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode(), level=9)


def unpack(text: str) -> bytes:
    """The bytes behind ``pack``."""
    return gzip.decompress(base64.b64decode(text))


# Coarser than this a second channel is not worth its bytes, and a view not worth a page.
SMALLEST_WITH_CHANNELS = 200_000
SMALLEST = 50_000


def fitted(view: View, max_bytes: int, max_voxels: int = MAX_VOXELS) -> tuple[View, dict[str, str]]:
    """The view with as many voxels as fit, and its packed volumes by the name of their block.

    Voxels go first; where fewer than 200,000 would be left, channels go, the last one first, and then voxels again. A
    view of 50,000 voxels with one channel is returned whatever it takes.
    """
    full, voxels = view, max_voxels
    while True:
        thin = full.thinned(voxels)
        packed = {name: pack_volume(volume) for name, volume in thin.volumes().items()}
        size = num_bytes(packed)
        many = len(full.channels) > 1
        floor = SMALLEST_WITH_CHANNELS if many else SMALLEST
        if size <= max_bytes or (thin.num_voxels <= floor and not many):
            return thin, packed
        if thin.num_voxels <= floor:
            full, voxels = full.without_last_channel(), min(2 * thin.num_voxels, max_voxels)
            continue
        voxels = min(int(thin.num_voxels * 0.9 * max_bytes / size), thin.num_voxels * 3 // 4)
        voxels = max(voxels, floor)


def num_bytes(packed: dict[str, str]) -> int:
    """What packed volumes take in a page."""
    return sum(map(len, packed.values()))


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
