"""Voxel counts of all labels of a case in one pass over its two label maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from medseg.errors import EvaluationError

# A slab and its index arrays stay in the processor's cache, which is what makes the pass fast.
SLAB_VOXELS = 1 << 17
# Integers within this span are mapped by table; wider ones by search.
TABLE_SPAN = 1 << 16

Order = Literal["C", "F"]


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
        """Voxels of (reference, prediction, both) in the union of these label values; 0 where none of them occurs."""
        inside = np.isin(self.values, label_values)
        return (
            int(self.counts[inside].sum()),
            int(self.counts[:, inside].sum()),
            int(self.counts[np.ix_(inside, inside)].sum()),
        )

    @property
    def reference_values(self) -> list[int]:
        """The label values in the reference, ascending."""
        return [int(value) for value in self.values[self.counts.sum(axis=1) > 0]]

    @property
    def predicted_values(self) -> list[int]:
        """The label values in the prediction, ascending."""
        return [int(value) for value in self.values[self.counts.sum(axis=0) > 0]]


def confusion(prediction: np.ndarray, reference: np.ndarray) -> Confusion:
    """Count every pair of (reference, prediction) values.

    Args:
        prediction: integers, any shape.
        reference: integers, the same shape.

    Raises:
        EvaluationError: the shapes differ or an array does not hold integers.
    """
    check_label_maps(prediction, reference)
    order: Order = "F" if prediction.flags.f_contiguous and reference.flags.f_contiguous else "C"
    prediction, reference = flat(prediction, order), flat(reference, order)
    values = np.union1d(present_values(prediction), present_values(reference))
    counts = np.zeros(len(values) ** 2, dtype=np.int64)
    for start in range(0, reference.size, SLAB_VOXELS):
        slab = slice(start, start + SLAB_VOXELS)
        code = _position(reference[slab], values) * len(values) + _position(prediction[slab], values)
        counts += np.bincount(code, minlength=len(counts))
    return Confusion(values, counts.reshape(len(values), len(values)))


def check_label_maps(prediction: np.ndarray, reference: np.ndarray) -> None:
    """Raise unless both are integer arrays of one shape."""
    if prediction.shape != reference.shape:
        raise EvaluationError(
            f"prediction and reference must have one shape, found {prediction.shape} and {reference.shape}; "
            "resample the prediction to the reference's grid"
        )
    for name, array in (("prediction", prediction), ("reference", reference)):
        if array.dtype.kind not in "biu":
            raise EvaluationError(f"the {name} must hold integer labels, found {array.dtype}; convert it with .astype")


def flat(array: np.ndarray, order: Order) -> np.ndarray:
    """All elements in one order, as integers; a view where the array lies in memory that way (nibabel's do in F)."""
    return (array.astype(np.uint8) if array.dtype == bool else array).ravel(order=order)


def present_values(array: np.ndarray) -> np.ndarray:
    """The distinct integers of a flat array, ascending, as int64; by table where their span allows it."""
    if array.size == 0:
        return np.array([], dtype=np.int64)
    low, high = int(array.min()), int(array.max())
    if high - low >= TABLE_SPAN:
        return np.unique(array).astype(np.int64)
    found = np.zeros(high - low + 1, dtype=bool)
    for start in range(0, array.size, SLAB_VOXELS):
        found[array[start : start + SLAB_VOXELS].astype(np.int64) - low] = True
    return np.flatnonzero(found) + low


def _position(slab: np.ndarray, values: np.ndarray) -> np.ndarray:
    low, high = int(values[0]), int(values[-1])
    if high - low >= TABLE_SPAN:
        return np.searchsorted(values, slab.astype(np.int64))
    table = np.zeros(high - low + 1, dtype=np.int64)
    table[values - low] = np.arange(len(values))
    return table[slab.astype(np.int64) - low]


def label_regions(labels: Mapping[str, int | Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Each structure's label values; a structure may be the union of several.

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
