"""Generated instance maps of touching cells, for tests of the boundary weight map."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial import cKDTree


def touching_cells(shape: Sequence[int], num_cells: int, radius: float = np.inf, seed: int = 0) -> np.ndarray:
    """Voronoi cells of random points, cut off at `radius` voxels; int32 numbers from 1, 0 outside."""
    points = np.random.default_rng(seed).uniform(0, 1, (num_cells, len(shape))) * np.array(shape)
    voxels = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1)
    distance, nearest = cKDTree(points).query(voxels)
    cells: np.ndarray = np.where(distance <= radius, nearest + 1, 0).astype(np.int32)
    return cells
