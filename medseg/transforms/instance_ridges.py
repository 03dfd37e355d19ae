"""Instances of a label map, and the background ridge that separates those that touch."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def connected_instances(label_map: np.ndarray, labels: np.ndarray, connectivity: int = 1) -> np.ndarray:
    """Number the connected components of each label, so that touching cells of two labels stay two instances.

    Args:
        label_map: integers of any dimension.
        labels: the values whose components count; all others become 0.
        connectivity: 1 joins voxels that share a face, `label_map.ndim` also those that share a corner.

    Returns:
        int32 of the same shape; 0 everywhere when no label occurs.
    """
    structure = ndimage.generate_binary_structure(label_map.ndim, connectivity)
    instances = np.zeros(label_map.shape, np.int32)
    found = 0
    for value in labels:
        components, count = ndimage.label(label_map == value, structure)
        instances += np.where(components > 0, components + found, 0).astype(np.int32)
        found += count
    return instances


def ridge_mask(instances: np.ndarray) -> np.ndarray:
    """True at every instance voxel with a neighbour (sharing a face, an edge or a corner) of a different instance.

    Args:
        instances: non-negative integers of any dimension, 0 is no instance.

    Returns:
        Boolean, same shape: a ridge one voxel wide on either side of every contact.
    """
    # The largest and the smallest non-zero number around a voxel differ where two instances meet. A box filter is
    # separable; zeros must not win the minimum, so they count as the largest integer there.
    highest = instances.copy()
    lowest = np.where(instances == 0, np.iinfo(instances.dtype).max, instances)
    for axis in range(instances.ndim):
        highest = _with_neighbours(highest, axis, np.maximum)
        lowest = _with_neighbours(lowest, axis, np.minimum)
    ridge: np.ndarray = (instances > 0) & (highest != lowest)
    return ridge


def _with_neighbours(values: np.ndarray, axis: int, extremum: np.ufunc) -> np.ndarray:
    ahead = [slice(None)] * values.ndim
    behind = [slice(None)] * values.ndim
    ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
    result = values.copy()
    extremum(result[tuple(behind)], values[tuple(ahead)], out=result[tuple(behind)])
    extremum(result[tuple(ahead)], values[tuple(behind)], out=result[tuple(ahead)])
    return result
