"""Lesion-wise scores of the BraTS 2023 challenge (https://github.com/rachitsaluja/BraTS-2023-Metrics)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from medseg.errors import EvaluationError
from medseg.evaluation.instances import connected_components
from medseg.evaluation.overlap import Box, dice, union
from medseg.evaluation.surface import surface_distances

DILATION_VOXELS = 3
SMALLEST_VOXELS = 50
PENALTY_MM = 374.0


@dataclass(frozen=True)
class LesionwiseScore:
    """Lesion-wise scores of one tissue of one case.

    Args:
        dice: Σ Dice of the reference lesions / (n_ref + n_fp).
        hd95_mm: (Σ HD95 + 374·n_fp) / (n_ref + n_fp).
        num_reference: reference lesions of more than 50 voxels.
        num_missed: reference lesions of more than 50 voxels that no prediction reaches.
        num_false_positive: predicted lesions that reach no reference lesion of any size.
    """

    dice: float
    hd95_mm: float
    num_reference: int
    num_missed: int
    num_false_positive: int


def brats_score(
    prediction: np.ndarray,
    reference: np.ndarray,
    spacing: Sequence[float],
    *,
    dilation_voxels: int = DILATION_VOXELS,
    smallest_voxels: int = SMALLEST_VOXELS,
    penalty_mm: float = PENALTY_MM,
) -> LesionwiseScore:
    """Compute lesion-wise Dice and HD95 as the organisers of BraTS 2023 do.

    Reference lesions are 26-connected. Lesions that touch after three dilations with the 18-neighbourhood are merged.
    The prediction of a lesion is the union of all predicted lesions that reach into its dilation. Reference lesions of
    at most 50 voxels are dropped; predictions that find them are no false positives.

    Args:
        prediction: bool, shape (i, j, k), one tissue (whole tumour, tumour core, enhancing tumour).
        reference: bool, the same shape.
        spacing: voxel size along each axis, in mm.
        dilation_voxels: 3 for gliomas, 1 for meningiomas and metastases.
        smallest_voxels: reference lesions of at most this size are dropped (metastases: 2).
        penalty_mm: HD95 of a missed or false-positive lesion; the diagonal of BraTS images.

    Returns:
        The scores. Without any reference lesion or false positive, Dice is 1 and HD95 0, as in BraTS.

    Raises:
        EvaluationError: the masks are not 3D or differ in shape.
    """
    if prediction.shape != reference.shape or reference.ndim != 3:
        raise EvaluationError(
            f"BraTS scores need two 3D masks of one shape, found {prediction.shape} and {reference.shape}"
        )
    neighbours = ndimage.generate_binary_structure(3, 2)
    predicted_lesions = connected_components(prediction)
    predicted_boxes = ndimage.find_objects(predicted_lesions)
    merged = connected_components(_dilated(reference, neighbours, dilation_voxels)) * reference
    reached: set[int] = set()
    scores, distances, missed = [], [], 0
    for number, tight in enumerate(ndimage.find_objects(merged), start=1):
        if tight is None:
            continue
        box = _grown(tight, dilation_voxels, reference.shape)
        near = _dilated(merged[box] == number, neighbours, dilation_voxels)
        partners = np.unique(predicted_lesions[box][near])
        partners = partners[partners > 0]
        reached |= set(partners.tolist())
        box = union(3, [tight, *(predicted_boxes[partner - 1] for partner in partners)])
        lesion, found = merged[box] == number, np.isin(predicted_lesions[box], partners)
        lesion_voxels = int(lesion.sum())
        if lesion_voxels <= smallest_voxels:
            continue
        missed += len(partners) == 0
        scores.append(dice(lesion_voxels, int(found.sum()), int((lesion & found).sum())))
        hd95 = surface_distances(found, lesion, spacing).hausdorff(95)
        distances.append(hd95 if np.isfinite(hd95) else penalty_mm)
    false_positives = len(predicted_boxes) - len(reached)
    total = len(scores) + false_positives
    return LesionwiseScore(
        dice=sum(scores) / total if total else 1.0,
        hd95_mm=(sum(distances) + penalty_mm * false_positives) / total if total else 0.0,
        num_reference=len(scores),
        num_missed=missed,
        num_false_positive=false_positives,
    )


def _dilated(mask: np.ndarray, neighbours: np.ndarray, times: int) -> np.ndarray:
    # For 0 iterations SciPy dilates until nothing changes.
    return ndimage.binary_dilation(mask, neighbours, iterations=times) if times else mask


def _grown(box: Box, margin: int, shape: Sequence[int]) -> Box:
    return tuple(
        slice(max(side.start - margin, 0), min(side.stop + margin, size)) for side, size in zip(box, shape, strict=True)
    )
