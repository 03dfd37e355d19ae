"""Means and medians with intervals, and the paired test; cases of one patient are not treated as independent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

NUM_DRAWS = 10_000
MIN_DRAWS = 2_000
# Below this number of patients an estimate is tagged, because its interval is uncertain itself.
FEW_PATIENTS = 20
LEVEL = 0.95
# Of fewer patients, the smallest and the largest mean do not cover the median with that probability.
FEWEST_FOR_INTERVAL = 6
# All 2^n signs are tried up to this number of differences with ties.
MAX_ENUMERATED = 13

Values = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Estimate:
    """An estimate with its confidence interval and sample size.

    Args:
        value: the estimate; NaN if n is 0.
        low, high: ends of the interval; NaN if there are too few patients for one.
        n: number of values, one per case (for a mean over classes, one per case and class).
        patients: number of independent patients.
    """

    value: float
    low: float
    high: float
    n: int
    patients: int

    @property
    def is_few(self) -> bool:
        """True below 20 patients, where the interval itself is uncertain."""
        return self.patients < FEW_PATIENTS


class ClusterBootstrap:
    """Resample patients with all their cases; all means share one seeded set of draws.

    Draw b takes each patient w_bp times, w_b multinomial; a mean over cases is then Σ w_bp·sum_p / Σ w_bp·count_p.
    Because the draws are shared, intervals of class means and of paired differences are those of a joint resampling.
    The interval is the percentile interval (Davison & Hinkley 1997, section 3.8).

    Args:
        patients: patient ids; repeated ids are one patient.
        num_draws: number of bootstrap draws, at least 2000.
        seed: seed of the draws.

    Raises:
        ValueError: fewer than 2000 draws.
    """

    def __init__(self, patients: Sequence[str], num_draws: int = NUM_DRAWS, seed: int = 0) -> None:
        if num_draws < MIN_DRAWS:
            raise ValueError(
                f"num_draws must be at least {MIN_DRAWS}, found {num_draws}; fewer draws give an unstable interval"
            )
        self.patients = sorted(set(patients))
        self._index = {patient: position for position, patient in enumerate(self.patients)}
        count = len(self.patients)
        generator = np.random.default_rng(seed)
        draws = generator.multinomial(count, np.full(count, 1 / count), size=num_draws) if count else np.zeros((0, 0))
        self._draws = draws.astype(np.float64)

    def mean(self, values: Values, patients: Sequence[str]) -> Estimate:
        """Return the mean of the finite values with its percentile interval; no interval below two patients.

        Args:
            values: one per case; values that are not finite do not enter.
            patients: patient of each value.
        """
        return self.mean_of_means([(values, patients)])

    def mean_of_means(self, groups: Sequence[tuple[Values, Sequence[str]]]) -> Estimate:
        """Return the unweighted mean of the means of several groups (classes), resampled jointly.

        A group without any finite value does not enter. A group that a draw leaves empty does not enter that draw.

        Args:
            groups: values and patients of each group, as for `mean`.
        """
        points, drawn, total, entered = [], [], 0, set()
        for values, patients in groups:
            sums, counts = self._per_patient(values, patients)
            if not counts.any():
                continue
            points.append(sums.sum() / counts.sum())
            with np.errstate(invalid="ignore", divide="ignore"):
                drawn.append((self._draws @ sums) / (self._draws @ counts))
            total += int(counts.sum())
            entered |= set(np.flatnonzero(counts).tolist())
        if not points:
            return Estimate(math.nan, math.nan, math.nan, 0, 0)
        low, high = math.nan, math.nan
        if len(entered) > 1:
            stacked = np.stack(drawn)
            present = np.isfinite(stacked)
            means = np.where(present, stacked, 0).sum(axis=0) / np.maximum(present.sum(axis=0), 1)
            tails = [100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2]
            low, high = (float(end) for end in np.percentile(means[present.any(axis=0)], tails))
        return Estimate(float(np.mean(points)), low, high, total, len(entered))

    def _per_patient(self, values: Values, patients: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        array = np.asarray(values, dtype=np.float64)
        index = np.array([self._index[patient] for patient in patients], dtype=np.int64)
        finite = np.isfinite(array)
        sums = np.bincount(index[finite], weights=array[finite], minlength=len(self.patients))
        counts = np.bincount(index[finite], minlength=len(self.patients))
        return sums, counts.astype(np.float64)


def patient_means(values: Values, patients: Sequence[str]) -> dict[str, float]:
    """Return the mean of each patient's finite values; patients without any are left out."""
    grouped: dict[str, list[float]] = {}
    for value, patient in zip(values, patients, strict=True):
        if math.isfinite(value):
            grouped.setdefault(patient, []).append(value)
    return {patient: float(np.mean(members)) for patient, members in grouped.items()}


def median(values: Values, patients: Sequence[str]) -> Estimate:
    """Return the median over patients (each the mean of its cases) with its order-statistic interval.

    The interval is that of SciPy's `quantile_test`, the inversion of the sign test: [x_(k), x_(n+1-k)] with the largest
    k for which P(Bin(n, ½) < k) ≤ 2.5 %, so that it covers at least 95 % for any distribution (David & Nagaraja 2003,
    section 7.1). Below six patients no such k exists and the ends are NaN.

    Args:
        values: one per case; values that are not finite do not enter.
        patients: patient of each value.
    """
    means = np.array(list(patient_means(values, patients).values()))
    num_cases = int(np.isfinite(np.asarray(values, dtype=np.float64)).sum())
    if means.size == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, 0)
    if means.size < FEWEST_FOR_INTERVAL:
        return Estimate(float(np.median(means)), math.nan, math.nan, num_cases, means.size)
    from scipy.stats import quantile_test  # takes half a second to import

    interval = quantile_test(means, p=0.5).confidence_interval(LEVEL)
    return Estimate(float(np.median(means)), float(interval.low), float(interval.high), num_cases, means.size)


def signed_rank_p(differences: Sequence[float]) -> float:
    """Return the two-sided p value of Wilcoxon's signed-rank test (Wilcoxon 1945); zeros are dropped.

    The test is exact without ties up to 50 differences and with ties up to 13, else the normal approximation.

    Args:
        differences: one per independent unit.

    Returns:
        The p value; 1 if no difference is other than zero.
    """
    nonzero = np.asarray(differences, dtype=np.float64)
    nonzero = nonzero[nonzero != 0]
    if nonzero.size == 0:
        return 1.0
    from scipy.stats import rankdata, wilcoxon  # takes half a second to import

    has_ties = len(np.unique(np.abs(nonzero))) < nonzero.size
    if not has_ties:
        return float(wilcoxon(nonzero).pvalue)
    if nonzero.size > MAX_ENUMERATED:
        return float(wilcoxon(nonzero, method="asymptotic").pvalue)
    # SciPy's exact test with ties gives the same p value, but takes seconds instead of milliseconds per test.
    ranks = rankdata(np.abs(nonzero))
    signs = np.array(list(product((-1, 1), repeat=nonzero.size)))
    # Half ranks are exact in binary, so equal sums compare equal.
    return float(np.mean(np.abs(signs @ ranks) >= abs(np.sign(nonzero) @ ranks)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values by Holm's step-down procedure (Holm 1979): p_(k)·(m−k+1), made monotone and capped at 1.

    Args:
        p_values: of all comparisons of one table, in any order.

    Returns:
        The corrected p values in the given order.
    """
    order = np.argsort(p_values, kind="stable")
    corrected, largest = np.zeros(len(p_values)), 0.0
    for rank, position in enumerate(order):
        largest = max(largest, min(1.0, p_values[position] * (len(p_values) - rank)))
        corrected[position] = largest
    return corrected.tolist()
