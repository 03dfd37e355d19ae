"""Class-frequency weights: how many voxels each label has, and the weight that makes every class count alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

ClassWeights = Literal["balanced"] | Mapping[int, float] | None

_COUNTABLE_RANGE = 1 << 16


def label_counts(labels: np.ndarray) -> dict[int, int]:
    """Voxels of every label that occurs, in rising order; empty for an empty array."""
    if labels.size == 0:
        return {}
    low, high = int(labels.min()), int(labels.max())
    if high - low > _COUNTABLE_RANGE:
        values, counts = np.unique(labels, return_counts=True)
        return dict(zip(values.tolist(), counts.tolist(), strict=True))
    counts = np.bincount((labels - low).ravel())  # sorting a volume is many times slower
    return {low + int(value): int(counts[value]) for value in np.flatnonzero(counts)}


def class_weight_map(labels: np.ndarray, labelled: np.ndarray, class_weights: ClassWeights) -> np.ndarray:
    """The class term wc(l(x)) of the boundary weight map.

    "balanced" is N / (number of classes present · voxels of the class) over the labelled voxels: the inverse frequency,
    scaled to mean 1.

    Args:
        labels: integers of any dimension.
        labelled: boolean, same shape; other voxels weigh 0 and are not counted.
        class_weights: "balanced", a mapping from label to weight (1 for labels it does not name), or None for 1.

    Returns:
        float32, same shape; all 0 where nothing is labelled.
    """
    weights = labelled.astype(np.float32)
    if class_weights is None:
        return weights
    counts = label_counts(labels[labelled])
    total = sum(counts.values())
    for value, count in counts.items():
        weight = total / (len(counts) * count) if class_weights == "balanced" else class_weights.get(value, 1.0)
        weights[labelled & (labels == value)] = weight
    return weights
