"""Surfaces of two masks, the distances between them, and the metrics that reduce those distances.

A surface element ("surfel") lies at every grid corner whose 2×2×2 (in 2D 2×2) neighbouring voxels are neither all
inside nor all outside the mask. Its area is that of the marching-cubes triangles of this neighbourhood at the given
spacing. These are the definitions of Nikolov et al. 2021 (arXiv:1809.04430) and of its `surface-distance` package; the
table of areas is MONAI's copy of that package's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from itertools import product

import numpy as np

from medseg.evaluation.overlap import bounding_box

LEAF_POINTS = 32


def surface_distances(prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]) -> SurfaceDistances:
    """Compute the surfels of two masks and their distances.

    Args:
        prediction: bool, shape (i, j) or (i, j, k). Everything outside the array counts as outside the mask.
        reference: bool, the same shape.
        spacing: voxel size along each axis, in mm.
    """
    spacing = tuple(float(step) for step in spacing)
    box = bounding_box(prediction | reference)
    predicted_code, reference_code = (neighbour_codes(mask[box]) for mask in (prediction, reference))
    predicted_surface, reference_surface = (surfels(codes) for codes in (predicted_code, reference_code))
    areas = surfel_areas(spacing)
    return SurfaceDistances(
        reference_mm=nearest_distances_mm(reference_surface, predicted_surface, spacing),
        predicted_mm=nearest_distances_mm(predicted_surface, reference_surface, spacing),
        reference_area=areas[reference_code[reference_surface]],
        predicted_area=areas[predicted_code[predicted_surface]],
    )


@dataclass(frozen=True)
class SurfaceDistances:
    """Distance of every surfel to the other surface, and its area.

    Args:
        reference_mm: distance of each reference surfel to the predicted surface, in mm; infinite if that is empty.
        predicted_mm: distance of each predicted surfel to the reference surface, in mm.
        reference_area: area of each reference surfel, in mm² (in 2D length in mm).
        predicted_area: area of each predicted surfel.
    """

    reference_mm: np.ndarray
    predicted_mm: np.ndarray
    reference_area: np.ndarray
    predicted_area: np.ndarray

    def nsd(self, tolerance_mm: float) -> float:
        """Normalised surface Dice (Nikolov et al. 2021): share of both surfaces within the tolerance of the other.

        NaN if both surfaces are empty, 0 if one is.
        """
        total = self.reference_area.sum() + self.predicted_area.sum()
        if total == 0:
            return math.nan
        # A distance equal to the tolerance counts as within it, so allow for the rounding of its square root.
        limit = tolerance_mm * (1 + 1e-6)
        near = (
            self.reference_area[self.reference_mm <= limit].sum()
            + self.predicted_area[self.predicted_mm <= limit].sum()
        )
        return float(near / total)

    def hausdorff(self, percent: float = 95.0) -> float:
        """Return the larger of the two directed area-weighted percentiles, in mm (HD95 by default).

        NaN if both surfaces are empty, infinite if one is.
        """
        directed = [
            _weighted_percentile(self.reference_mm, self.reference_area, percent),
            _weighted_percentile(self.predicted_mm, self.predicted_area, percent),
        ]
        if self.reference_mm.size == 0 or self.predicted_mm.size == 0:
            return math.nan if self.reference_mm.size == self.predicted_mm.size else math.inf
        return max(directed)

    def assd(self) -> float:
        """Return the average symmetric surface distance in mm, the area-weighted mean over both surfaces.

        NaN if both surfaces are empty, infinite if one is.
        """
        total = self.reference_area.sum() + self.predicted_area.sum()
        if total == 0:
            return math.nan
        weighted = self.reference_mm @ self.reference_area + self.predicted_mm @ self.predicted_area
        return float(weighted / total)


def nearest_distances_mm(queries: np.ndarray, targets: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """Compute the distance of each query point to the nearest target point with a KD-tree.

    Args:
        queries: bool, shape (i, j) or (i, j, k); True at the query points.
        targets: bool, the same shape; True at the target points.
        spacing: grid spacing along each axis, in mm.

    Returns:
        float64, one distance in mm per query point in C order; infinite if there are no targets.
    """
    if not targets.any():
        return np.full(int(np.count_nonzero(queries)), np.inf)
    distances = np.zeros(int(np.count_nonzero(queries)))
    is_apart = ~targets[queries]  # a query that is itself a target has distance 0
    if is_apart.any():
        from scipy.spatial import KDTree  # equal masks do not need it, and it takes time to import

        steps = np.asarray(spacing, dtype=np.float64)
        # Sliding-midpoint trees stay fast on grids, where many points tie for the median; balanced trees were up to
        # 2.6 times slower on real masks. A distance transform was never faster by more than a fifth.
        tree = KDTree(np.argwhere(targets) * steps, leafsize=LEAF_POINTS, compact_nodes=False, balanced_tree=False)
        distances[is_apart], _ = tree.query(np.argwhere(queries & ~targets) * steps)
    return distances


def neighbour_codes(mask: np.ndarray) -> np.ndarray:
    """Encode for each corner of the voxel grid which of its 2^d voxels are inside, as bits of one byte.

    Args:
        mask: bool, shape (i, j) or (i, j, k).

    Returns:
        uint8, one larger than the mask along each axis; the first voxel (0, …, 0) is the highest bit.
    """
    codes = np.zeros([size + 1 for size in mask.shape], dtype=np.uint8)
    inside = mask.view(np.uint8)
    highest = 2**mask.ndim - 1
    for position, corner in enumerate(product((0, 1), repeat=mask.ndim)):
        # A voxel is the neighbour on side `corner` of the grid corner that lies 1 - side further along each axis.
        window = tuple(slice(1 - side, 1 - side + size) for side, size in zip(corner, mask.shape, strict=True))
        codes[window] |= inside << np.uint8(highest - position)
    return codes


def surfels(codes: np.ndarray) -> np.ndarray:
    """Return True at the corners whose neighbourhood is neither all outside nor all inside."""
    return (codes != 0) & (codes != 2 ** (2**codes.ndim) - 1)


@lru_cache(maxsize=64)
def surfel_areas(spacing: tuple[float, ...]) -> np.ndarray:
    """Return the area in mm² (in 2D length in mm) of the surfel of each neighbourhood code, float64.

    The values are those of `monai.metrics.utils.get_code_to_measure_table`, which would import torch and all of MONAI.
    """
    if len(spacing) == 2:
        first, second = spacing
        diagonal = math.hypot(first, second) / 2
        lengths = np.full(16, diagonal)  # of one voxel or three: a cut corner
        lengths[[0b0000, 0b1111]] = 0
        lengths[[0b0011, 0b1100]] = second
        lengths[[0b0101, 0b1010]] = first
        lengths[[0b0110, 0b1001]] = 2 * diagonal
        return lengths
    stored = json.loads((files("medseg.evaluation") / "surfel_normals.json").read_text(encoding="utf-8"))
    normals = np.array(stored["normals"], dtype=np.float64).reshape(256, 4, 3) / 8
    i, j, k = spacing
    return np.linalg.norm(normals * [j * k, i * k, i * j], axis=-1).sum(-1)


def _weighted_percentile(distances: np.ndarray, areas: np.ndarray, percent: float) -> float:
    """Return the smallest distance within which at least `percent` of the area lies; NaN without any area."""
    if distances.size == 0:
        return math.nan
    order = np.argsort(distances)
    share = np.cumsum(areas[order]) / areas.sum()
    return float(distances[order[min(int(np.searchsorted(share, percent / 100)), distances.size - 1)]])
