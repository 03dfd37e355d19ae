"""Bytes as text inside a page: gzip and base64, which browsers undo with atob and DecompressionStream."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import numpy as np


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
