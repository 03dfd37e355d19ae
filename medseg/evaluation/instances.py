"""Metrics of objects (lesions, cells): detection, false positives, and overlap of matched objects."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from medseg.errors import EvaluationError


@dataclass(frozen=True)
class InstanceScore:
    """Detected and matched objects of one case.

    Args:
        num_reference, num_predicted: number of objects.
        num_found: reference objects that a prediction overlaps.
        num_false_positive: predicted objects that overlap no reference object.
        num_matched: one-to-one pairs of IoU ≥ 0.5.
        matched_iou: sum of their IoU.
        reference_voxels: size of each reference object in voxels, shape (num_reference,).
        found: True for the reference objects that a prediction overlaps, the same shape.
    """

    num_reference: int
    num_predicted: int
    num_found: int
    num_false_positive: int
    num_matched: int
    matched_iou: float
    reference_voxels: np.ndarray
    found: np.ndarray

    @property
    def sensitivity(self) -> float:
        """Share of reference objects found at any overlap; NaN if there are none."""
        return self.num_found / self.num_reference if self.num_reference else math.nan

    @property
    def f1_any(self) -> float:
        """F1 = TP/(TP + ½(FP+FN)) at any overlap, TP the reference objects found; NaN without objects."""
        missed = self.num_reference - self.num_found
        return _ratio(self.num_found, self.num_found + 0.5 * (self.num_false_positive + missed))

    @property
    def rq(self) -> float:
        """Recognition quality (Kirillov et al. 2019, arXiv:1801.00868), the F1 at IoU ≥ 0.5; NaN without objects."""
        return _ratio(self.num_matched, 0.5 * (self.num_reference + self.num_predicted))

    @property
    def sq(self) -> float:
        """Segmentation quality: mean IoU of the matched pairs; NaN if none matches."""
        return _ratio(self.matched_iou, self.num_matched)

    @property
    def pq(self) -> float:
        """Panoptic quality, ΣIoU/(TP + ½FP + ½FN) = SQ·RQ; 0 if nothing matches, NaN without objects."""
        return _ratio(self.matched_iou, 0.5 * (self.num_reference + self.num_predicted))


def connected_components(mask: np.ndarray) -> np.ndarray:
    """Number the objects of a mask 1, 2, …; neighbours by face, edge or corner (26 in 3D, 8 in 2D) belong together."""
    return ndimage.label(mask, structure=np.ones((3,) * mask.ndim, dtype=bool))[0]


def instance_score(prediction: np.ndarray, reference: np.ndarray, min_iou: float = 0.5) -> InstanceScore:
    """Match the objects of two instance maps.

    Args:
        prediction: integers, 0 is background and every other value one object; any shape.
        reference: integers of the same shape.
        min_iou: smallest IoU of a matched pair, inclusive. Pairs are one-to-one with the largest total IoU, which
            resolves the ties that are possible at IoU = 0.5.

    Raises:
        EvaluationError: the shapes differ.
    """
    if prediction.shape != reference.shape:
        raise EvaluationError(f"instance maps must have one shape, found {prediction.shape} and {reference.shape}")
    predicted_ids, predicted_sizes = _objects(prediction)
    reference_ids, reference_sizes = _objects(reference)
    both = (prediction != 0) & (reference != 0)
    rows = np.searchsorted(reference_ids, reference[both])
    columns = np.searchsorted(predicted_ids, prediction[both])
    pairs, shared = np.unique(rows * len(predicted_ids) + columns, return_counts=True)
    rows, columns = np.divmod(pairs, max(len(predicted_ids), 1))
    iou = shared / (reference_sizes[rows] + predicted_sizes[columns] - shared)
    is_candidate = iou >= min_iou
    matched = _best_matching(rows[is_candidate], columns[is_candidate], iou[is_candidate])
    found = np.isin(np.arange(len(reference_ids)), rows)
    return InstanceScore(
        num_reference=len(reference_ids),
        num_predicted=len(predicted_ids),
        num_found=int(found.sum()),
        num_false_positive=len(predicted_ids) - len(np.unique(columns)),
        num_matched=len(matched),
        matched_iou=float(matched.sum()),
        reference_voxels=reference_sizes,
        found=found,
    )


def _objects(instance_map: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.unique(instance_map[instance_map != 0], return_counts=True)


def _best_matching(rows: np.ndarray, columns: np.ndarray, iou: np.ndarray) -> np.ndarray:
    """Return the IoU of the pairs of the best one-to-one matching of the candidate pairs."""
    if rows.size == 0:
        return np.zeros(0)
    row_ids, row_index = np.unique(rows, return_inverse=True)
    column_ids, column_index = np.unique(columns, return_inverse=True)
    if len(row_ids) == len(rows) and len(column_ids) == len(columns):
        return iou  # already one-to-one, as always above IoU 0.5
    from scipy.optimize import linear_sum_assignment  # few matchings need it, and it takes time to import

    table = np.zeros((len(row_ids), len(column_ids)))
    table[row_index, column_index] = iou
    chosen = table[linear_sum_assignment(table, maximize=True)]
    return chosen[chosen > 0]


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan
