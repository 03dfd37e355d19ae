"""How much memory a prediction will take, before it starts."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path

from medseg.errors import MemoryLimitError, OptionError
from medseg.inference.tiles import TileGrid
from medseg.transforms.label_tail import CHUNK_VALUES, CHUNK_VOXELS, SLAB_PLANES, SLAB_VALUES

UNITS = {"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KIB": 1024, "MIB": 1024**2, "GIB": 1024**3}
# Interpreter, torch and MONAI loaded, where the system does not say.
USUAL_RESIDENT = 700 * 1024**2
# What allocators keep beyond what is asked of them.
SLACK = 64 * 1024**2
F32, F64 = 4, 8


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes needed, phase by phase.

    Args:
        resident: what the process holds already: libraries, weights, the scan as read.
        preprocess: at most while the scan is turned into the network's input.
        merge: image, labels, unfinished slabs and the block being restored.
        network: one forward pass over a batch of tiles, where it runs in this memory.
    """

    resident: int
    preprocess: int
    merge: int
    network: int

    @property
    def total(self) -> int:
        """The most that is held at once."""
        return self.resident + max(self.preprocess, self.merge + self.network) + SLACK


def parse_bytes(text: str | int) -> int:
    """Bytes of "4GB", "500 MiB" or a plain number.

    Raises:
        OptionError: it is none of these, or not positive.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?I?B?)\s*", str(text).upper())
    unit = match[2] if match else ""
    unit = unit if unit.endswith("B") or not unit else unit + "B"
    if not match or unit not in UNITS or float(match[1]) <= 0:
        raise OptionError(f"an amount of memory looks like 4GB or 500MiB, found {text!r}")
    return int(float(match[1]) * UNITS[unit])


def resident_bytes() -> int:
    """What this process holds in memory now; a usual value where the system does not tell."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        import resource

        return int(statm.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return USUAL_RESIDENT


def preprocess_bytes(native_shape: Sequence[int], model_shape: Sequence[int], channels: int, resamples: bool) -> int:
    """While preprocessing: the scan in float32, turned, resampled (MONAI: in float64, with a position a voxel)."""
    native, model = prod(native_shape), prod(model_shape)
    resampling = F64 * channels * native + (F64 * (2 * channels + 2 * len(model_shape)) + F32 * channels) * model
    normalizing = F32 * (3 * channels + 3) * model
    return 2 * F32 * channels * native + max(resampling if resamples else 0, normalizing)


def merge_bytes(
    grid: TileGrid,
    native_shape: Sequence[int],
    in_channels: int,
    num_values: int,
    label_bytes: int,
    halo: int,
    batch_size: int,
    is_head_apart: bool,
) -> int:
    """While tiles are merged and restored.

    Args:
        grid: the tiles.
        native_shape: of the scan.
        in_channels: of the image.
        num_values: channels that are blended.
        label_bytes: of one label.
        halo: planes the interpolation reaches back.
        batch_size: tiles predicted at once.
        is_head_apart: whether values are features, all of them resampled at once.
    """
    order = grid.axis_order
    length, width = (grid.padded_shape[axis] for axis in order[:2])
    depth = prod(grid.padded_shape[axis] for axis in order[2:])
    tile, row = (grid.tile[axis] for axis in order[:2])
    step, row_step = (_step(grid.starts[axis], grid.tile[axis]) for axis in order[:2])
    touched = min(width, row + row_step)
    carried = (tile - step) * width * depth if length > tile else 0
    fresh = (step if length > tile else tile) * touched * depth
    finished = (step + halo) * (row_step + halo) * depth  # the block with what interpolation reaches back to
    kept = halo * (2 * width + (step + halo)) * depth + (tile - step) * row_step * depth
    zoom = [n / m for n, m in zip(sorted(native_shape), sorted(grid.image_shape), strict=True)]
    native_plane = int(row_step * depth * max(1.0, prod(zoom[:-1]))) if len(zoom) > 1 else depth
    if is_head_apart:
        tail = 2 * min(SLAB_VALUES, SLAB_PLANES * num_values * native_plane) + 3 * CHUNK_VALUES
    else:
        tail = 3 * min(SLAB_VALUES, SLAB_PLANES * native_plane) + 4 * CHUNK_VOXELS
    tiles = batch_size * prod(grid.tile) * (num_values + in_channels)
    image = in_channels * prod(grid.image_shape)
    labels = label_bytes * prod(native_shape)
    return labels + F32 * (image + tiles + (num_values + 1) * (carried + fresh) + num_values * (finished + kept) + tail)


def _step(starts: Sequence[int], tile: int) -> int:
    return max((b - a for a, b in pairwise(starts)), default=tile)


def require(estimate: MemoryEstimate, limit: int, name: str) -> None:
    """Raise MemoryLimitError where a prediction would not keep the limit."""
    if estimate.total > limit:
        raise MemoryLimitError(
            f"{name}: needs about {_mb(estimate.total)} of memory at the least ({_mb(estimate.resident)} for the "
            f"process and the scan, {_mb(estimate.network)} for the network, {_mb(estimate.merge)} for merging, "
            f"{_mb(estimate.preprocess)} while preprocessing), allowed are {_mb(limit)}; raise --max-ram"
        )


def _mb(size: int) -> str:
    return f"{size / 1000**2:,.0f} MB"
