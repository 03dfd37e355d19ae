"""The optional sets of object metrics, each as numbers in the order of its columns."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from medseg.errors import EvaluationError
from medseg.evaluation.brats import brats_score
from medseg.evaluation.em import em_score
from medseg.evaluation.instances import InstanceScore, connected_components, instance_score
from medseg.evaluation.metrics import EM_METRICS, Instances


def object_values(
    instances: Instances, prediction: np.ndarray, reference: np.ndarray, spacing: Sequence[float]
) -> tuple[list[float], InstanceScore | None]:
    """The values of one set of object metrics for two masks, and the objects behind them.

    Args:
        instances: "components": connected components matched by overlap; "brats": the challenge's lesion-wise scores
            (3D); "em": partition scores of cells (2D).
        prediction, reference: bool, one shape.
        spacing: voxel size along each axis, in mm.

    Raises:
        EvaluationError: a set that the masks' dimension does not allow.
    """
    if instances == "components":
        score = instance_score(connected_components(prediction), connected_components(reference))
        return [
            score.f1_any,
            score.sensitivity,
            float(score.num_false_positive),
            score.rq,
            score.sq,
            score.pq,
            float(score.num_reference),
            float(score.num_predicted),
        ], score
    if instances == "brats":
        brats = brats_score(prediction, reference, spacing)
        return [
            brats.dice,
            brats.hd95_mm,
            float(brats.num_reference),
            float(brats.num_missed),
            float(brats.num_false_positive),
        ], None
    if reference.ndim != 2:
        raise EvaluationError(
            f"EM metrics are of 2D slices, found shape {reference.shape}; evaluate each slice as a case"
        )
    if not reference.any():
        return [math.nan] * len(EM_METRICS), None
    em = em_score(prediction.astype(np.float32), reference, thresholds=(0.5,))
    return [em.v_rand, em.v_info, em.rand_error, em.pixel_error], None
