"""Overlap and volume of one structure from its voxel counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from medseg.evaluation.confusion import confusion


def dice(reference_voxels: int, predicted_voxels: int, shared_voxels: int) -> float:
    """Dice = 2|R∩P| / (|R|+|P|) (Dice 1945); NaN where both are empty, 0 where one is."""
    total = reference_voxels + predicted_voxels
    return 2 * shared_voxels / total if total else math.nan


def precision(predicted_voxels: int, shared_voxels: int) -> float:
    """|R∩P| / |P|; NaN where the prediction is empty."""
    return shared_voxels / predicted_voxels if predicted_voxels else math.nan


def recall(reference_voxels: int, shared_voxels: int) -> float:
    """|R∩P| / |R|, also called sensitivity; NaN where the reference is empty."""
    return shared_voxels / reference_voxels if reference_voxels else math.nan


def size_difference(reference_voxels: int, predicted_voxels: int, voxel_size: float) -> tuple[float, float]:
    """Predicted minus reference size, signed, and the same in percent of the reference (NaN where that is empty).

    Args:
        voxel_size: size of one voxel, in the unit of the answer (ml, or mm² in 2D).
    """
    difference = predicted_voxels - reference_voxels
    percent = 100 * difference / reference_voxels if reference_voxels else math.nan
    return difference * voxel_size, percent


def case_dice(prediction: Any, reference: Any, label_values: Sequence[int | Sequence[int]]) -> np.ndarray:
    """Dice of each label of one case, the number that training, `evaluate.json` and `medseg evaluate` all report.

    Args:
        prediction: integer label map, any shape; a NumPy array or a torch tensor.
        reference: integer label map of the same shape.
        label_values: the value of each structure, or the values whose union it is.

    Returns:
        float64, shape (len(label_values),): NaN where both masks are empty (correct absence), 0 where one is.

    Raises:
        EvaluationError: the shapes differ or an array does not hold integers.
    """
    counts = confusion(as_array(prediction), as_array(reference))
    return np.array([dice(*counts.region(np.atleast_1d(values).tolist())) for values in label_values], dtype=np.float64)


def as_array(label_map: Any) -> np.ndarray:
    """A plain NumPy array of an array or tensor, from whichever device it is on."""
    if hasattr(label_map, "detach"):
        label_map = label_map.detach().cpu().numpy()
    return np.asarray(label_map)
