"""Distances between two sets of grid points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial import KDTree


def nearest_distances_mm(queries: np.ndarray, targets: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Distance of each query point to the nearest target point.

    Args:
        queries: bool, the points asked about.
        targets: bool, the same shape.
        spacing: grid spacing along each axis, in mm.

    Returns:
        float64, one distance in mm a query in C order; infinite where there are no targets.
    """
    count = int(queries.sum())
    if not targets.any():
        return np.full(count, np.inf)
    distances = np.zeros(count)
    apart = ~targets[queries]  # a query that is itself a target has distance 0
    if apart.any():
        tree = KDTree(np.argwhere(targets) * np.asarray(spacing), compact_nodes=False, balanced_tree=False)
        distances[apart], _ = tree.query(np.argwhere(queries)[apart] * np.asarray(spacing))
    return distances
