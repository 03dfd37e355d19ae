"""Distances between two sets of grid points: by search tree where they lie close, by distance transform where not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import distance_transform_edt
from scipy.spatial import KDTree

# Measured costs, in nanoseconds: a query near its target; one target that a far query has to look at; a voxel of the
# distance transform. Only their ratios matter, and only for speed.
NEAR_QUERY_NS = 1000.0
FAR_TARGET_NS = 2.5
VOXEL_NS = 100.0
# Queries this many voxels away find many targets at nearly the same distance and must compare them all.
FAR_VOXELS = 8.0
PROBES = 256
LEAF_POINTS = 32
# The transform holds 12 bytes a voxel, 0.8 GB at this size; beyond it the tree does all, whose memory is the surface's.
MAX_TRANSFORM_VOXELS = 1 << 26


def nearest_distances_mm(queries: np.ndarray, targets: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Distance of each query point to the nearest target point.

    Args:
        queries: bool, shape (i, j) or (i, j, k), the points asked about.
        targets: bool, the same shape.
        spacing: grid spacing along each axis, in mm.

    Returns:
        float64, one distance in mm a query in C order; infinite where there are no targets.
    """
    count = int(np.count_nonzero(queries))
    if not targets.any():
        return np.full(count, np.inf)
    distances = np.zeros(count)
    apart = ~targets[queries]  # a query that is itself a target has distance 0
    num_apart = int(np.count_nonzero(apart))
    if num_apart == 0:
        return distances
    steps = np.asarray(spacing, dtype=np.float64)
    target_points, query_points = np.argwhere(targets), np.argwhere(queries & ~targets)
    # Sliding-midpoint trees build faster than balanced ones, and stay fast on grids, where medians tie.
    tree = KDTree(target_points * steps, leafsize=LEAF_POINTS, compact_nodes=False, balanced_tree=False)
    probes, _ = tree.query(query_points[:: -(-num_apart // PROBES)] * steps)
    is_far = float(probes.mean()) > FAR_VOXELS * steps.min()
    tree_ns = num_apart * (FAR_TARGET_NS * len(target_points) if is_far else NEAR_QUERY_NS)
    if tree_ns > VOXEL_NS * targets.size and targets.size <= MAX_TRANSFORM_VOXELS:
        partner = distance_transform_edt(~targets, sampling=spacing, return_distances=False, return_indices=True)
        offsets = partner[(slice(None), *query_points.T)].T - query_points
        distances[apart] = np.linalg.norm(offsets * steps, axis=1)
    else:
        distances[apart], _ = tree.query(query_points * steps)
    return distances
