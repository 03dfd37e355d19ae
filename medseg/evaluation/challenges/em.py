"""Metrics of the ISBI 2012 electron-microscopy challenge for cells separated by membranes.

Arganda-Carreras et al. 2015 (doi:10.3389/fnana.2015.00142): foreground-restricted Rand and information scores after
thinning the borders of the proposal to one pixel, and the pixel error. All are computed slice by slice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from medseg.errors import EvaluationError

THRESHOLDS = tuple(round(0.1 * step, 1) for step in range(10))


@dataclass(frozen=True)
class EMScore:
    """Scores of a stack, each at its best threshold.

    Args:
        v_rand: foreground-restricted Rand F-score, 1 is best.
        v_info: foreground-restricted information-theoretic F-score, 1 is best.
        pixel_f1: F-score of cell pixels.
        v_rand_threshold, v_info_threshold, pixel_threshold: threshold of each score.
    """

    v_rand: float
    v_info: float
    pixel_f1: float
    v_rand_threshold: float
    v_info_threshold: float
    pixel_threshold: float

    @property
    def rand_error(self) -> float:
        """1 − V_rand."""
        return 1 - self.v_rand

    @property
    def pixel_error(self) -> float:
        """1 − the F-score of cell pixels."""
        return 1 - self.pixel_f1


def em_score(proposal: np.ndarray, reference: np.ndarray, thresholds: Sequence[float] = THRESHOLDS) -> EMScore:
    """Score cell probabilities against a binary reference.

    At each threshold t the pixels with proposal > t are cells. Scores are averaged over the slices that have reference
    cells; then the best threshold of the whole stack is taken for each score.

    Args:
        proposal: probability of cell in [0, 1], shape (i, j) or (slices, i, j). A binary map scores the same at
            every t.
        reference: cells above 0, membranes 0, the same shape.
        thresholds: in [0, 1).

    Returns:
        The scores; NaN if no slice has reference cells.

    Raises:
        EvaluationError: the shapes differ or are not 2D or 3D, or the proposal is not within [0, 1].
    """
    if proposal.shape != reference.shape or reference.ndim not in (2, 3):
        raise EvaluationError(f"EM scores need 2D slices of one shape, found {proposal.shape} and {reference.shape}")
    if proposal.size and not (float(proposal.min()) >= 0 and float(proposal.max()) <= 1):
        raise EvaluationError(
            f"an EM proposal must lie in [0, 1], found {proposal.min():g} to {proposal.max():g}; divide 8 bits by 255"
        )
    slices = [(p, r > 0) for p, r in zip(_stack(proposal), _stack(reference), strict=True)]
    best = [(math.nan, math.nan)] * 3
    for threshold in thresholds:
        scored = [_slice_scores(p > threshold, r) for p, r in slices if r.any()]
        if scored:
            means = np.mean(scored, axis=0)
            best = [max(old, (float(new), threshold), key=_rank) for old, new in zip(best, means, strict=True)]
    (v_rand, t_rand), (v_info, t_info), (pixel, t_pixel) = best
    return EMScore(v_rand, v_info, pixel, t_rand, t_info, t_pixel)


def partition_scores(proposal: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Compute V_rand and V_info of two partitions of the reference's foreground (Arganda-Carreras et al., Eqs. 3 to 8).

    With p_ij the share of foreground pixels in reference segment i and proposed segment j, a_i and b_j its sums, n the
    number of foreground pixels and a0 the share in proposed background, whose pixels are segments of one pixel each:

        S_AB = Σ_{j≥1} p_ij² + a0/n,  S_A = Σ a_i²,  S_B = Σ_{j≥1} b_j² + a0/n,  V_rand = 2·S_AB/(S_A + S_B)
        V_info = 2·I/(H_A + H_B),  each single pixel adding (1/n)·log(1/n) to the sums of H_B and of the joint entropy

    Args:
        proposal: integers, 0 background (borders), else the segment; any shape.
        reference: integers, 0 not scored, else the segment; the same shape.

    Returns:
        (V_rand, V_info), each in [0, 1]; NaN if the reference has no foreground. V_info is 1 for two partitions of one
        segment each, which hold no information.
    """
    foreground = reference > 0
    n = int(np.count_nonzero(foreground))
    if n == 0:
        return math.nan, math.nan
    rows, columns = reference[foreground].astype(np.int64), proposal[foreground].astype(np.int64)
    width = int(columns.max()) + 1
    pairs, counts = np.unique(rows * width + columns, return_counts=True)
    rows, columns, p = pairs // width, pairs % width, counts / n
    single = float(p[columns == 0].sum())
    a, b = np.bincount(rows, weights=p), np.bincount(columns, weights=p)[1:]
    joint = p[columns > 0]
    s_ab, s_a, s_b = (joint**2).sum() + single / n, (a**2).sum(), (b**2).sum() + single / n
    h_single = single * math.log(n)
    h_a, h_b, h_ab = _entropy(a), _entropy(b) + h_single, _entropy(joint) + h_single
    v_info = 2 * (h_a + h_b - h_ab) / (h_a + h_b) if h_a + h_b > 0 else 1.0
    return float(2 * s_ab / (s_a + s_b)), float(v_info)


def segments(cells: np.ndarray) -> np.ndarray:
    """Number the 4-connected components of a binary slice 1, 2, …; 0 elsewhere."""
    return ndimage.label(cells)[0]


def thinned(segment_map: np.ndarray) -> np.ndarray:
    """Grow segments into the background until borders of one pixel (0) separate them, by a 4-connected watershed."""
    if not segment_map.any():
        return segment_map
    import SimpleITK as sitk  # noqa: N813 (imported here, because most evaluations do not need it)

    markers = sitk.GetImageFromArray(segment_map.astype(np.int32))
    flat = sitk.Image(markers.GetSize(), sitk.sitkUInt8)
    grown = sitk.MorphologicalWatershedFromMarkers(flat, markers, markWatershedLine=True, fullyConnected=False)
    return sitk.GetArrayFromImage(grown)


def _slice_scores(cells: np.ndarray, reference: np.ndarray) -> tuple[float, float, float]:
    v_rand, v_info = partition_scores(thinned(segments(cells)), segments(reference))
    shared = np.count_nonzero(cells & reference)
    return v_rand, v_info, 2 * shared / (np.count_nonzero(cells) + np.count_nonzero(reference))


def _stack(array: np.ndarray) -> np.ndarray:
    return array[None] if array.ndim == 2 else array


def _rank(candidate: tuple[float, float]) -> float:
    return -1.0 if math.isnan(candidate[0]) else candidate[0]


def _entropy(p: np.ndarray) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())
