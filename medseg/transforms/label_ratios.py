"""How often each label is drawn."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

Ratios = Sequence[float] | Mapping[Any, float] | None


def checked_ratios(ratios: Ratios) -> dict[int, float] | None:
    """Positive ratios by label value, from a sequence by label value or a mapping (JSON's string keys too).

    Raises:
        ValueError: a ratio is negative, or none is positive.
    """
    if ratios is None:
        return None
    pairs = ratios.items() if isinstance(ratios, Mapping) else enumerate(ratios)
    checked = {int(label): float(ratio) for label, ratio in pairs}
    if not checked or min(checked.values()) < 0 or not 0 < sum(checked.values()) < float("inf"):
        raise ValueError(f"ratios must be non-negative with a positive sum, found {ratios}")
    return {label: ratio for label, ratio in checked.items() if ratio > 0}


def choose_label(state: np.random.RandomState, odds: Mapping[int, float]) -> int:
    """One key of `odds`, with probability in proportion to its value (all positive)."""
    cumulative = list(accumulate(odds.values()))
    rank = bisect_right(cumulative, state.random_sample() * cumulative[-1])
    return list(odds)[min(rank, len(cumulative) - 1)]  # rounding may reach the very end
