"""Zarr stores for the tests, written with the zarr package alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

SPACE = [{"name": name, "type": "space", "unit": "micrometer"} for name in "zyx"]


def ome_zarr(
    folder: Path,
    array: np.ndarray,
    version: str = "0.5",
    scale: Sequence[float] = (2.0, 0.5, 0.25),
    axes: Sequence[Any] = tuple(SPACE),
    chunks: Sequence[int] = (16, 16, 16),
    num_levels: int = 2,
    translation: Sequence[float] | None = None,
    shards: Sequence[int] | None = None,
    **changes: Any,
) -> Path:
    """Write an OME-Zarr image whose coarser levels take every second voxel of the axes of space.

    Args:
        folder: of the store.
        array: voxels.
        version: 0.4 (Zarr 2) or 0.5 (Zarr 3).
        scale: of the axes of space; axes before them have 1.
        axes: metadata of the axes.
        chunks: of the axes of space.
        num_levels: resolution levels.
        translation: of the axes of space; None writes none.
        shards: of the axes of space; None writes none.
        changes: entries of the multiscales object to replace.
    """
    more = array.ndim - len(scale)
    group = zarr.create_group(str(folder), zarr_format=2 if version == "0.4" else 3)
    datasets = []
    level = array
    for number in range(num_levels):
        factor = 2**number
        sizes = [min(c, n) for c, n in zip(chunks, level.shape[more:], strict=True)]
        stored = group.create_array(
            str(number), shape=level.shape, chunks=(*[1] * more, *sizes),
            shards=None if shards is None else (*[1] * more, *shards), dtype=level.dtype, fill_value=0,
            chunk_key_encoding={"name": "v2" if version == "0.4" else "default", "separator": "/"},
        )  # fmt: skip
        stored[...] = level
        steps = [{"type": "scale", "scale": [*[1.0] * more, *(s * factor for s in scale)]}]
        if translation is not None:
            steps.append({"type": "translation", "translation": [*[0.0] * more, *translation]})
        datasets.append({"path": str(number), "coordinateTransformations": steps})
        level = level[(Ellipsis, *[slice(None, None, 2)] * len(scale))]
    entry = {"axes": list(axes), "datasets": datasets, **changes}
    if version == "0.4":
        group.attrs["multiscales"] = [{"version": "0.4", **entry}]
    else:
        group.attrs["ome"] = {"version": version, "multiscales": [entry]}
    return folder


def noise(shape: Sequence[int], seed: int = 0, dtype: Any = np.uint16) -> np.ndarray:
    """Return random voxels, none of them 0."""
    return np.random.default_rng(seed).integers(1, 1000, tuple(shape)).astype(dtype)
