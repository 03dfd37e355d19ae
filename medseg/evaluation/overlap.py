"""Overlap and size of structures from joint voxel counts, and the bounding boxes of labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import ndimage

from medseg.errors import EvaluationError

Order = Literal["C", "F"]
Box = tuple[slice, ...]

# Voxels counted at a time. A slab and its index arrays fit the processor's cache, which makes counting fast.
SLAB_VOXELS = 1 << 17
# Label values within this range are mapped to positions by a table, a wider range by a search.
TABLE_SPAN = 1 << 16
# find_objects returns a list as long as the largest label; above this it costs more than it saves.
LARGEST_LABEL = 1 << 16


def case_dice(prediction: Any, reference: Any, label_values: Sequence[int | Sequence[int]]) -> np.ndarray:
    """Compute the Dice of each label of one case; training and `medseg evaluate` report the same numbers.

    Args:
        prediction: integer label map, any shape; a NumPy array or a torch tensor.
        reference: integer label map of the same shape.
        label_values: the value of each structure, or the values whose union it is.

    Returns:
        float64, shape (len(label_values),): NaN if both masks are empty (correct absence), 0 if one is.

    Raises:
        EvaluationError: the shapes differ or an array does not hold integers.
    """
    counts = confusion(_as_array(prediction), _as_array(reference))
    return np.array([dice(*counts.region(np.atleast_1d(values).tolist())) for values in label_values], dtype=np.float64)


@dataclass(frozen=True)
class Confusion:
    """Joint voxel counts of a reference and a prediction.

    Args:
        values: the label values that occur in either array, ascending, shape (n,).
        counts: counts[r, p] voxels have reference values[r] and prediction values[p], shape (n, n).
    """

    values: np.ndarray
    counts: np.ndarray

    def region(self, label_values: Sequence[int]) -> tuple[int, int, int]:
        """Count the voxels of (reference, prediction, both) in the union of these label values."""
        inside = np.isin(self.values, label_values)
        return (
            int(self.counts[inside].sum()),
            int(self.counts[:, inside].sum()),
            int(self.counts[np.ix_(inside, inside)].sum()),
        )


def confusion(prediction: np.ndarray, reference: np.ndarray) -> Confusion:
    """Count every pair of (reference, prediction) values.

    Args:
        prediction: integers, any shape.
        reference: integers, the same shape.

    Raises:
        EvaluationError: the shapes differ or an array does not hold integers.
    """
    if prediction.shape != reference.shape:
        raise EvaluationError(
            f"prediction and reference must have one shape, found {prediction.shape} and {reference.shape}; "
            "resample the prediction to the reference's grid"
        )
    for name, array in (("prediction", prediction), ("reference", reference)):
        if array.dtype.kind not in "biu":
            raise EvaluationError(f"the {name} must hold integer labels, found {array.dtype}; convert it with .astype")
    order: Order = "F" if prediction.flags.f_contiguous and reference.flags.f_contiguous else "C"
    prediction, reference = _flat(prediction, order), _flat(reference, order)
    values = np.union1d(present_values(prediction), present_values(reference))
    counts = np.zeros(len(values) ** 2, dtype=np.int64)
    for start in range(0, reference.size, SLAB_VOXELS):
        slab = slice(start, start + SLAB_VOXELS)
        code = _position(reference[slab], values) * len(values) + _position(prediction[slab], values)
        counts += np.bincount(code, minlength=len(counts))
    return Confusion(values, counts.reshape(len(values), len(values)))


def present_values(array: np.ndarray) -> np.ndarray:
    """Return the distinct integers of a one-dimensional array, ascending, as int64."""
    if array.size == 0:
        return np.array([], dtype=np.int64)
    low, high = int(array.min()), int(array.max())
    if high - low >= TABLE_SPAN:
        return np.unique(array).astype(np.int64)
    found = np.zeros(high - low + 1, dtype=bool)
    for start in range(0, array.size, SLAB_VOXELS):
        found[array[start : start + SLAB_VOXELS].astype(np.int64) - low] = True
    return np.flatnonzero(found) + low


def label_regions(labels: Mapping[str, int | Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Return the label values of each structure; a structure may be the union of several.

    Raises:
        EvaluationError: a structure without a value, or a value that is not an integer.
    """
    regions = {}
    for name, given in labels.items():
        values = (given,) if isinstance(given, int | np.integer) else tuple(given)
        if not values or not all(isinstance(value, int | np.integer) for value in values):
            raise EvaluationError(f"label {name!r}: needs one integer or several, found {given!r}; correct the labels")
        regions[str(name)] = tuple(int(value) for value in values)
    return regions


def dice(reference_voxels: int, predicted_voxels: int, shared_voxels: int) -> float:
    """Dice = 2|R∩P| / (|R|+|P|) (Dice 1945); NaN if both masks are empty, 0 if one is."""
    total = reference_voxels + predicted_voxels
    return 2 * shared_voxels / total if total else math.nan


def precision(predicted_voxels: int, shared_voxels: int) -> float:
    """|R∩P| / |P|; NaN if the prediction is empty."""
    return shared_voxels / predicted_voxels if predicted_voxels else math.nan


def recall(reference_voxels: int, shared_voxels: int) -> float:
    """|R∩P| / |R|, also called sensitivity; NaN if the reference is empty."""
    return shared_voxels / reference_voxels if reference_voxels else math.nan


def size_difference(reference_voxels: int, predicted_voxels: int, voxel_size: float) -> tuple[float, float]:
    """Return predicted minus reference size, signed, and the same in percent of the reference (NaN if that is empty).

    Args:
        reference_voxels: number of voxels in the reference mask.
        predicted_voxels: number of voxels in the predicted mask.
        voxel_size: size of one voxel in the unit of the result (ml, or mm² in 2D).
    """
    difference = predicted_voxels - reference_voxels
    percent = 100 * difference / reference_voxels if reference_voxels else math.nan
    return difference * voxel_size, percent


class LabelBoxes:
    """Bounding boxes of all labels of a label map, found in one pass over it.

    Args:
        label_map: integers or bool, any shape.
    """

    def __init__(self, label_map: np.ndarray) -> None:
        label_map = label_map.astype(np.uint8) if label_map.dtype == bool else label_map
        self._label_map = label_map
        largest = int(label_map.max(initial=0))
        fits_list = 0 < largest <= LARGEST_LABEL and int(label_map.min(initial=0)) >= 0
        self._boxes = ndimage.find_objects(label_map, largest) if fits_list else None

    def region(self, values: Sequence[int]) -> Box:
        """Return the box of the union of these labels; empty slices if none of them occurs."""
        if self._boxes is None:
            return bounding_box(np.isin(self._label_map, values))
        boxes = [self._boxes[value - 1] for value in values if 0 < value <= len(self._boxes)]
        return union(self._label_map.ndim, (box for box in boxes if box is not None))


def bounding_box(mask: np.ndarray) -> Box:
    """Return the smallest box that holds all true elements; empty slices if there are none."""
    box = []
    for axis in range(mask.ndim):
        occupied = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        box.append(slice(int(occupied[0]), int(occupied[-1]) + 1) if occupied.size else slice(0, 0))
    return tuple(box)


def union(ndim: int, boxes: Iterable[Box]) -> Box:
    """Return the smallest box that holds all of these boxes; empty boxes are ignored."""
    occupied = [box for box in boxes if all(side.stop > side.start for side in box)]
    if not occupied:
        return (slice(0, 0),) * ndim
    return tuple(
        slice(min(box[axis].start for box in occupied), max(box[axis].stop for box in occupied)) for axis in range(ndim)
    )


def _as_array(label_map: Any) -> np.ndarray:
    """Return an array or a tensor on any device as a NumPy array."""
    if hasattr(label_map, "detach"):
        label_map = label_map.detach().cpu().numpy()
    return np.asarray(label_map)


def _flat(array: np.ndarray, order: Order) -> np.ndarray:
    """Return all elements as a one-dimensional integer array, without a copy if memory already has this order."""
    return (array.astype(np.uint8) if array.dtype == bool else array).ravel(order=order)


def _position(slab: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the position of each voxel's value in `values`."""
    low, high = int(values[0]), int(values[-1])
    if high - low >= TABLE_SPAN:
        return np.searchsorted(values, slab.astype(np.int64))
    table = np.zeros(high - low + 1, dtype=np.int64)
    table[values - low] = np.arange(len(values))
    return table[slab.astype(np.int64) - low]
