"""Wilcoxon's signed-rank test and Holm's correction for several of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from scipy.stats import rankdata, wilcoxon

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
