"""Surfaces of two masks, the distances between them, and the metrics that reduce those distances.

A surface element ("surfel") lies wherever the 2×2×2 (in 2D 2×2) voxels around a grid corner are neither all inside nor
all outside; its area is that of the marching-cubes triangles of this neighbourhood, in the voxels' true spacing. These
are the definitions of Nikolov et al. 2021 (arXiv:1809.04430) and its `surface-distance` package; the table of areas is
MONAI's copy of that package's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
from scipy.ndimage import distance_transform_edt
from scipy.spatial import KDTree

from medseg.evaluation.overlap import bounding_box

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


@dataclass(frozen=True)
class SurfaceDistances:
    """Every surfel's distance to the other surface and its own size.

    Args:
        reference_mm: distance of each reference surfel to the predicted surface, in mm; infinite where that is empty.
        predicted_mm: distance of each predicted surfel to the reference surface, in mm.
        reference_area: size of each reference surfel, in mm² (in 2D mm).
        predicted_area: size of each predicted surfel.
    """

    reference_mm: np.ndarray
    predicted_mm: np.ndarray
    reference_area: np.ndarray
    predicted_area: np.ndarray

    def nsd(self, tolerance_mm: float) -> float:
        """Normalised surface Dice (Nikolov et al. 2021): the share of both surfaces within the tolerance of the other.

        NaN where both surfaces are empty, 0 where one is.
        """
        total = self.reference_area.sum() + self.predicted_area.sum()
        if total == 0:
            return math.nan
        # A distance that equals the tolerance is within it, whatever the rounding of its square root says.
        limit = tolerance_mm * (1 + 1e-6)
        near = (
            self.reference_area[self.reference_mm <= limit].sum()
            + self.predicted_area[self.predicted_mm <= limit].sum()
        )
        return float(near / total)

    def hausdorff(self, percent: float = 95.0) -> float:
        """Larger of the two directed area-weighted percentiles, in mm (HD95 by default).

        NaN where both surfaces are empty, infinite where one is.
        """
        directed = [
            _weighted_percentile(self.reference_mm, self.reference_area, percent),
            _weighted_percentile(self.predicted_mm, self.predicted_area, percent),
        ]
        if self.reference_mm.size == 0 or self.predicted_mm.size == 0:
            return math.nan if self.reference_mm.size == self.predicted_mm.size else math.inf
        return max(directed)

    def assd(self) -> float:
        """Average symmetric surface distance in mm: the area-weighted mean over both surfaces.

        NaN where both surfaces are empty, infinite where one is.
        """
        total = self.reference_area.sum() + self.predicted_area.sum()
        if total == 0:
            return math.nan
        weighted = self.reference_mm @ self.reference_area + self.predicted_mm @ self.predicted_area
        return float(weighted / total)


def surface_distances(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> SurfaceDistances:
    """Surfels of two masks and their distances.

    Args:
        prediction: bool, shape (i, j) or (i, j, k). Everything outside the array counts as outside the mask.
        reference: bool, the same shape.
        spacing: voxel size along each axis, in mm.
    """
    spacing = tuple(float(step) for step in spacing)
    box = bounding_box(prediction | reference)
    predicted_code, reference_code = (neighbour_codes(mask[box]) for mask in (prediction, reference))
    predicted, reference_surface = (surfels(code) for code in (predicted_code, reference_code))
    areas = surfel_areas(spacing)
    return SurfaceDistances(
        reference_mm=nearest_distances_mm(reference_surface, predicted, spacing),
        predicted_mm=nearest_distances_mm(predicted, reference_surface, spacing),
        reference_area=areas[reference_code[reference_surface]],
        predicted_area=areas[predicted_code[predicted]],
    )


def neighbour_codes(mask: np.ndarray) -> np.ndarray:
    """For each corner of the voxel grid, which of its 2^d voxels are inside, as bits of one byte.

    Args:
        mask: bool, shape (i, j) or (i, j, k).

    Returns:
        uint8, one larger than the mask along each axis; the first voxel (0, …, 0) is the highest bit.
    """
    codes = np.zeros([size + 1 for size in mask.shape], dtype=np.uint8)
    inside = mask.view(np.uint8)
    highest = 2**mask.ndim - 1
    for position, corner in enumerate(product((0, 1), repeat=mask.ndim)):
        # The voxel that is this corner's neighbour on side `corner` sits one further along each axis where it is 0.
        window = tuple(slice(1 - side, 1 - side + size) for side, size in zip(corner, mask.shape, strict=True))
        codes[window] |= inside << np.uint8(highest - position)
    return codes


def surfels(codes: np.ndarray) -> np.ndarray:
    """Where the neighbourhood is neither all outside nor all inside, bool."""
    return (codes != 0) & (codes != 2 ** (2**codes.ndim) - 1)


@lru_cache(maxsize=64)
def surfel_areas(spacing: tuple[float, ...]) -> np.ndarray:
    """Area in mm² (length in mm in 2D) of each neighbourhood code's surface elements, float64."""
    from monai.metrics.utils import get_code_to_measure_table  # brings torch, which takes seconds to import

    table, _ = get_code_to_measure_table(spacing)
    return table.numpy().astype(np.float64)


def _weighted_percentile(distances: np.ndarray, areas: np.ndarray, percent: float) -> float:
    """Smallest distance within which lie at least `percent` of the area; NaN where there is none."""
    if distances.size == 0:
        return math.nan
    order = np.argsort(distances)
    share = np.cumsum(areas[order]) / areas.sum()
    return float(distances[order[min(int(np.searchsorted(share, percent / 100)), distances.size - 1)]])
