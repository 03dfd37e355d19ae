"""Calibrated confidence: a temperature for the probabilities, an interval for each volume, and an expected Dice.

Networks are too sure of themselves. One temperature per network, fitted on cases that its training did not see, divides
the logits before the softmax (Guo et al. 2017, arXiv:1706.04599). It changes probabilities and never a label. What
follows from the calibrated probabilities is fitted on the same cases:

- The number of voxels with a probability of at least t falls as t rises. For each case, one threshold t gives exactly
  the reference's volume. The 5 % and 95 % quantiles of these thresholds over the cases give the interval of a new scan,
  which contains the reference's volume in 90 % of the cases if the scan is like them (split conformal prediction, Vovk
  et al. 2005, with the threshold as the score). Scans whose borders are unsure get wide intervals.
- The Dice that the probabilities expect, 2 Σ p / (n + Σ p), where the first sum runs over the n voxels of the label.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medseg.errors import BundleError

SCHEMA_VERSION = 1
LEVEL = 0.9
# Thresholds at which voxels are counted: evenly spaced logits of probabilities from 0.0001 to 0.9999.
LARGEST_LOGIT = log(0.9999 / 0.0001)
EDGES = np.linspace(-LARGEST_LOGIT, LARGEST_LOGIT, 185)


@dataclass(frozen=True)
class Calibration:
    """Hold the values that were fitted on cases that the training did not see (`models/calibration.json`).

    Args:
        weights_sha256: digest of the weights that it belongs to; other weights are not calibrated by it.
        temperature: divisor of the logits, above 0.
        thresholds: by label, the logits of the two probability thresholds whose voxel counts are the low and high end
            of the interval, high threshold first. Empty where no intervals are given.
        dice_offset: by label, what is added to the expected Dice. Empty where no Dice is predicted.
        cases: number of cases.
        patients: number of patients.
        data: data set and fold of the cases.
        level: share of cases whose interval holds the reference's volume.
        measured: what was measured on these cases, for the record.
    """

    weights_sha256: str
    temperature: float
    thresholds: Mapping[str, Sequence[float]] = field(default_factory=dict)
    dice_offset: Mapping[str, float] = field(default_factory=dict)
    cases: int = 0
    patients: int = 0
    data: str = ""
    level: float = LEVEL
    measured: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        values = [self.temperature, *self.dice_offset.values(), *(t for pair in self.thresholds.values() for t in pair)]
        if not np.isfinite(np.array(values, dtype=np.float64)).all() or not self.temperature > 0:
            raise ValueError("temperature, thresholds and offsets must be finite, and the temperature above 0")
        if any(len(pair) != 2 or pair[0] < pair[1] for pair in self.thresholds.values()):
            raise ValueError("thresholds must be two per label, the higher one first")
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(f"schema_version {self.schema_version}, expected {SCHEMA_VERSION}")

    def to_dict(self) -> dict[str, Any]:
        """Return the calibration as plain data."""
        return json.loads(json.dumps(asdict(self)))


def read_calibration(path: str | Path) -> Calibration:
    """Read a calibration.json.

    Raises:
        BundleError: the file is not a calibration.
    """
    path = Path(path)
    try:
        return Calibration(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BundleError(f"{path}: not a calibration ({error}); calibrate the bundle again") from None


class VolumeCounts:
    """Count the voxels of each label by their calibrated probability, while a scan is predicted.

    Voxels that are almost surely background are counted in no bin, so that large scans cost little.

    Args:
        names: label of each channel, background first.
        temperature: divisor of the logits.
    """

    def __init__(self, names: Sequence[str], temperature: float) -> None:
        self.names = list(names)
        self.temperature = temperature
        # Row c, column j: voxels whose probability of channel c lies between the edges j − 1 and j.
        self.counts = np.zeros((len(names), len(EDGES) + 1), dtype=np.int64)
        self.num_labelled = np.zeros(len(names), dtype=np.int64)
        self.sum_labelled = np.zeros(len(names))
        self.sums = np.zeros(len(names))

    def observe(self, logits: torch.Tensor, region: Sequence[slice], native_axes: Sequence[int]) -> None:
        """See `Observer.observe`."""
        # Below the lowest edge even if all other labels were as likely as the likeliest one.
        least = -self.temperature * (LARGEST_LOGIT + log(max(len(logits) - 1, 1)))
        is_open = logits[1:].amax(0) - logits[0] > least
        chosen = logits[:, is_open].float()
        if not chosen.shape[1]:
            return
        p = (chosen / self.temperature).softmax(0).double()
        winner = chosen.argmax(0)
        edges = torch.from_numpy(EDGES).to(p.device).sigmoid()
        for channel in range(1, len(p)):
            bins = torch.bucketize(p[channel], edges, right=True)
            self.counts[channel] += torch.bincount(bins, minlength=len(EDGES) + 1).cpu().numpy()
            is_label = winner == channel
            self.num_labelled[channel] += int(is_label.sum())
            self.sum_labelled[channel] += float(p[channel][is_label].sum())
            self.sums[channel] += float(p[channel].sum())

    def add(self, other: VolumeCounts) -> None:
        """Add the voxels of another part of the scan."""
        for name in ("counts", "num_labelled", "sum_labelled", "sums"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def voxels_above(self, name: str, threshold_logit: float) -> float:
        """Return the number of voxels with at least this probability of a label, interpolated between the edges."""
        above = self._above(name)
        return float(np.interp(threshold_logit, EDGES, above))

    def threshold_of(self, name: str, num_voxels: float) -> float:
        """Return the logit of the threshold that gives this number of voxels: the middle of those between two edges."""
        above = self._above(name)
        lowest, highest = EDGES[above <= num_voxels], EDGES[above >= num_voxels]
        first = lowest.min() if len(lowest) else EDGES[-1]
        return float((first + (highest.max() if len(highest) else EDGES[0])) / 2)

    def expected_dice(self, name: str) -> float:
        """Return the Dice that the probabilities expect; NaN if the label is absent."""
        channel = self.names.index(name)
        total = self.num_labelled[channel] + self.sums[channel]
        return float(2 * self.sum_labelled[channel] / total) if self.num_labelled[channel] else float("nan")

    def intervals_ml(self, calibration: Calibration, voxel_volume_mm3: float) -> dict[str, list[float]]:
        """Return low and high end of each label's volume in millilitres; the labelled volume lies between them."""
        intervals = {}
        for name, (high, low) in calibration.thresholds.items():
            labelled = self.num_labelled[self.names.index(name)]
            ends = min(self.voxels_above(name, high), labelled), max(self.voxels_above(name, low), labelled)
            intervals[name] = [round(end * voxel_volume_mm3 / 1000, 4) for end in ends]
        return intervals

    def predicted_dice(self, calibration: Calibration) -> dict[str, float | None]:
        """Return the predicted Dice of each label, 0 to 1; None for an absent label."""
        predicted = {name: self.expected_dice(name) + offset for name, offset in calibration.dice_offset.items()}
        return {name: round(min(max(d, 0.0), 1.0), 4) if np.isfinite(d) else None for name, d in predicted.items()}

    def _above(self, name: str) -> np.ndarray:
        """Return the number of voxels at or above each edge, falling."""
        counts = self.counts[self.names.index(name)]
        return (counts.sum() - np.cumsum(counts)[:-1]).astype(np.float64)
