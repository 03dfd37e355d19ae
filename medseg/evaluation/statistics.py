"""Means and medians with intervals that respect patients: cases of one patient are not independent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.stats import binom, rankdata, wilcoxon

NUM_DRAWS = 10_000
MIN_DRAWS = 2_000
FEW = 20
LEVEL = 0.95

Values = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Estimate:
    """A number with its interval and what it rests on.

    Args:
        value: the estimate; NaN where n is 0.
        low, high: ends of the interval; NaN where none can be given.
        n: how many values entered, one a case (for a mean over classes, one a case and class).
        patients: how many independent patients they are of.
    """

    value: float
    low: float
    high: float
    n: int
    patients: int

    @property
    def is_few(self) -> bool:
        """Whether fewer than 20 patients stand behind it, so that the interval itself is uncertain."""
        return self.patients < FEW


class ClusterBootstrap:
    """Seeded resampling of patients with all their cases, one set of draws shared by every mean it is asked for.

    Draw b takes each patient w_bp times, w_b multinomial; a mean over cases is then Σ w_bp·sum_p / Σ w_bp·count_p.
    Sharing the draws makes intervals of class means and of paired differences those of a joint resampling.
    (Davison & Hinkley 1997, section 3.8; percentile interval.)

    Args:
        patients: the patients that can be drawn.
        num_draws: at least 2000.
        seed: of the draws.

    Raises:
        ValueError: fewer draws than 2000.
    """

    def __init__(self, patients: Sequence[str], num_draws: int = NUM_DRAWS, seed: int = 0) -> None:
        if num_draws < MIN_DRAWS:
            raise ValueError(f"num_draws must be at least {MIN_DRAWS} for a stable interval, found {num_draws}")
        self.patients = sorted(set(patients))
        self._index = {patient: position for position, patient in enumerate(self.patients)}
        count = len(self.patients)
        generator = np.random.default_rng(seed)
        draws = generator.multinomial(count, np.full(count, 1 / count), size=num_draws) if count else np.zeros((0, 0))
        self._draws = draws.astype(np.float64)

    def mean(self, values: Values, patients: Sequence[str]) -> Estimate:
        """Mean over the finite values with its percentile interval; no interval below two patients."""
        return self.mean_of_means([(values, patients)])

    def mean_of_means(self, groups: Sequence[tuple[Values, Sequence[str]]]) -> Estimate:
        """Unweighted mean of the groups' means (classes), each over its finite values, resampled jointly.

        A group without any finite value does not enter; one that a draw leaves empty does not enter that draw.
        """
        points, drawn, total, seen = [], [], 0, set()
        for values, patients in groups:
            sums, counts = self._per_patient(values, patients)
            if not counts.any():
                continue
            points.append(sums.sum() / counts.sum())
            with np.errstate(invalid="ignore", divide="ignore"):
                drawn.append((self._draws @ sums) / (self._draws @ counts))
            total += int(counts.sum())
            seen |= set(np.flatnonzero(counts).tolist())
        if not points:
            return Estimate(math.nan, math.nan, math.nan, 0, 0)
        low, high = math.nan, math.nan
        if len(seen) > 1:
            stacked = np.stack(drawn)
            present = np.isfinite(stacked)
            means = np.where(present, stacked, 0).sum(axis=0) / np.maximum(present.sum(axis=0), 1)
            tails = [100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2]
            low, high = (float(end) for end in np.percentile(means[present.any(axis=0)], tails))
        return Estimate(float(np.mean(points)), low, high, total, len(seen))

    def _per_patient(self, values: Values, patients: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        array = np.asarray(values, dtype=np.float64)
        index = np.array([self._index[patient] for patient in patients], dtype=np.int64)
        finite = np.isfinite(array)
        sums = np.bincount(index[finite], weights=array[finite], minlength=len(self.patients))
        counts = np.bincount(index[finite], minlength=len(self.patients))
        return sums, counts.astype(np.float64)


def patient_means(values: Values, patients: Sequence[str]) -> dict[str, float]:
    """Each patient's mean over its finite values; patients without one are left out."""
    grouped: dict[str, list[float]] = {}
    for value, patient in zip(values, patients, strict=True):
        if math.isfinite(value):
            grouped.setdefault(patient, []).append(value)
    return {patient: float(np.mean(members)) for patient, members in grouped.items()}


def median(values: Values, patients: Sequence[str]) -> Estimate:
    """Median over patients (each the mean of its cases) with the distribution-free order-statistic interval.

    The interval [x_(k), x_(n+1-k)] takes the largest k with P(Bin(n, ½) < k) ≤ 2.5 %, so it covers at least 95 %
    (David & Nagaraja 2003, section 7.1). Below six patients no such k exists and the ends are NaN.
    """
    means = np.sort(list(patient_means(values, patients).values()))
    num_cases = int(np.isfinite(np.asarray(values, dtype=np.float64)).sum())
    if means.size == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, 0)
    rank = int(binom.ppf((1 - LEVEL) / 2, means.size, 0.5))
    while rank > 0 and binom.cdf(rank - 1, means.size, 0.5) > (1 - LEVEL) / 2:
        rank -= 1
    low, high = (means[rank - 1], means[means.size - rank]) if rank else (math.nan, math.nan)
    return Estimate(float(np.median(means)), float(low), float(high), num_cases, means.size)


# Up to here all 2^n signs are tried, which is exact with ties as well.
ENUMERATED = 13


def signed_rank_p(differences: Sequence[float]) -> float:
    """Two-sided p of Wilcoxon's signed-rank test (Wilcoxon 1945); zeros are dropped.

    Exact for up to 13 differences whatever their ties (where SciPy's is a general permutation, and slow), then
    SciPy's: exact up to 50 without ties, otherwise its normal approximation.

    Args:
        differences: one an independent unit.

    Returns:
        The p value; 1 where no difference is other than zero.
    """
    nonzero = np.asarray(differences, dtype=np.float64)
    nonzero = nonzero[nonzero != 0]
    if nonzero.size == 0:
        return 1.0
    if nonzero.size > ENUMERATED:
        has_ties = len(np.unique(np.abs(nonzero))) < nonzero.size
        return float(wilcoxon(nonzero, method="asymptotic" if has_ties else "auto").pvalue)
    ranks = rankdata(np.abs(nonzero))
    signs = np.array(list(product((-1, 1), repeat=nonzero.size)))
    # Half ranks are exact in binary, so equal sums compare equal.
    return float(np.mean(np.abs(signs @ ranks) >= abs(np.sign(nonzero) @ ranks)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p_(k)·(m−k+1), made monotone and capped at 1 (Holm 1979); in the given order."""
    order = np.argsort(p_values, kind="stable")
    corrected, largest = np.zeros(len(p_values)), 0.0
    for rank, position in enumerate(order):
        largest = max(largest, min(1.0, p_values[position] * (len(p_values) - rank)))
        corrected[position] = largest
    return corrected.tolist()
