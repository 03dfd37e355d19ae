"""Choose the voxel size of the network's input, as nnU-Net does (Isensee et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medseg.planning.data_fingerprint import DataFingerprint

# An axis whose voxels are more than this many times as large as the others' is treated on its own (nnU-Net's value).
ANISOTROPY = 3


def target_spacing(data: DataFingerprint) -> list[float]:
    """Return the median voxel size per axis, with nnU-Net's exception for an axis that is far coarser.

    If one axis has voxels more than three times as large as the others, and fewer than a third of their number, the
    10th percentile replaces the median along it, but never less than the other axes' voxel size.
    """
    spacings = np.array(data.spacings, dtype=float)
    sizes = np.median(np.array(data.nonzero_shapes, dtype=float), axis=0)
    target = np.median(spacings, axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(len(target)) if axis != worst]
    is_coarse = target[worst] > ANISOTROPY * max(target[others])
    is_short = sizes[worst] * ANISOTROPY < min(sizes[others])
    if is_coarse and is_short:
        target[worst] = max(np.percentile(spacings[:, worst], 10), max(target[others]))
    return [float(s) for s in target]


def median_shape(data: DataFingerprint, spacing: Sequence[float]) -> list[float]:
    """Return the median size of the non-zero part of the images at a voxel size, in voxels."""
    shapes = [
        [max(1, round(n * own / s)) for n, own, s in zip(shape, each, spacing, strict=True)]
        for shape, each in zip(data.nonzero_shapes, data.spacings, strict=True)
    ]
    return [float(n) for n in np.median(np.array(shapes), axis=0)]
