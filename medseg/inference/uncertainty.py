"""Keep more of a prediction than its labels: probabilities, entropy, and an interval for each volume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any, Literal

import numpy as np
import torch

from medseg.inference.confidence import Calibration, VolumeCounts
from medseg.inference.scan import Scan
from medseg.inference.segmentation import Segmentation
from medseg.plan import Plan
from medseg.transforms.restore.label_decision import Observer

# A voxel surely belongs to a structure from the first probability on, and possibly from the second on.
INTERVAL = (0.75, 0.25)


class ProbabilityMaps:
    """Keep the probability of every class at every native voxel, in half precision.

    Args:
        native_shape: shape of the scan in voxels.
        num_channels: classes or regions.
        activation: activation of the logits.
        temperature: divisor of the logits.
    """

    def __init__(
        self,
        native_shape: Sequence[int],
        num_channels: int,
        activation: Literal["softmax", "sigmoid"],
        temperature: float = 1.0,
    ) -> None:
        self.maps = np.zeros((num_channels, *native_shape), dtype=np.float16)
        self.activation = activation
        self.temperature = temperature

    @staticmethod
    def bytes_per_voxel(num_channels: int) -> int:
        """Return the memory per native voxel."""
        return 2 * num_channels

    def observe(self, logits: torch.Tensor, region: Sequence[slice], native_axes: Sequence[int]) -> None:
        """See `Observer.observe`."""
        view = self.maps.transpose(0, *(axis + 1 for axis in native_axes))
        view[(slice(None), *region)] = _probabilities(logits, self.activation, self.temperature).cpu().numpy()


class Uncertainty:
    """Keep an entropy map, and the volumes at two probability thresholds.

    The entropy is that of the softmax divided by log C, or the largest binary entropy of any region divided by log 2.
    It is 0 where the network is sure and 255 where all answers are equally likely.

    Args:
        native_shape: shape of the scan in voxels.
        num_channels: classes or regions.
        activation: activation of the logits.
        temperature: divisor of the logits.
    """

    def __init__(
        self,
        native_shape: Sequence[int],
        num_channels: int,
        activation: Literal["softmax", "sigmoid"],
        temperature: float = 1.0,
    ) -> None:
        self.entropy = np.zeros(tuple(native_shape), dtype=np.uint8)
        self.activation = activation
        self.temperature = temperature
        self.counts = np.zeros((num_channels, 2), dtype=np.int64)

    @staticmethod
    def bytes_per_voxel() -> int:
        """Return the memory per native voxel."""
        return 1

    def observe(self, logits: torch.Tensor, region: Sequence[slice], native_axes: Sequence[int]) -> None:
        """See `Observer.observe`."""
        p = _probabilities(logits, self.activation, self.temperature)
        for column, threshold in enumerate(INTERVAL):
            self.counts[:, column] += (p >= threshold).flatten(1).sum(1).cpu().numpy()
        if self.activation == "softmax":
            entropy = -torch.special.xlogy(p, p).sum(0) / log(max(len(p), 2))
        else:
            entropy = (-torch.special.xlogy(p, p) - torch.special.xlogy(1 - p, 1 - p)).amax(0) / log(2)
        scaled = entropy.mul_(255).round_().clamp_(0, 255).to(torch.uint8)
        self.entropy.transpose(*native_axes)[tuple(region)] = scaled.cpu().numpy()

    def intervals_ml(self, label_names: Sequence[str], voxel_volume_mm3: float) -> dict[str, list[float]]:
        """Return the smallest and largest likely volume of each structure, in millilitres.

        These are the voxels with a probability of at least 0.75 and at least 0.25. They state the network's doubt and
        are no confidence interval of the anatomy.

        Args:
            label_names: name of every channel; "background" is left out.
            voxel_volume_mm3: volume of one voxel of the scan.
        """
        return {
            name: [float(count * voxel_volume_mm3 / 1000) for count in counts]
            for name, counts in zip(label_names, self.counts, strict=True)
            if name != "background"
        }


def _probabilities(logits: torch.Tensor, activation: Literal["softmax", "sigmoid"], temperature: float) -> torch.Tensor:
    scaled = logits if temperature == 1 else logits / temperature
    return scaled.softmax(dim=0) if activation == "softmax" else scaled.sigmoid()


@dataclass(frozen=True)
class Observers:
    """Everything that is kept of a scan's logits beside its labels.

    Args:
        uncertainty: entropy and uncalibrated intervals; None unless requested.
        maps: probability maps; None unless requested.
        counts: voxels by calibrated probability; None without a calibration.
        names: label or region of each channel of logits.
    """

    uncertainty: Uncertainty | None
    maps: ProbabilityMaps | None
    counts: VolumeCounts | None
    names: Sequence[str]

    @property
    def all(self) -> list[Observer]:
        """Those that exist."""
        return [each for each in (self.uncertainty, self.maps, self.counts) if each is not None]

    def segmentation(
        self, array: np.ndarray, plan: Plan, scan: Scan, record: Mapping[str, Any], calibration: Calibration | None
    ) -> Segmentation:
        """Return the segmentation with what was kept.

        Args:
            array: labels on the scan's grid.
            plan: of the network.
            scan: what was segmented.
            record: of how it was made.
            calibration: replaces the uncalibrated intervals.
        """
        voxel_mm3 = scan.reference.grid.voxel_volume_mm3
        intervals = None if self.uncertainty is None else self.uncertainty.intervals_ml(self.names, voxel_mm3)
        predicted_dice = None
        if calibration is not None and self.counts is not None:
            record = {**record, "confidence": {"level": calibration.level, "calibrated_on": calibration.data}}
            intervals = self.counts.intervals_ml(calibration, voxel_mm3) or intervals
            predicted_dice = self.counts.predicted_dice(calibration) or None
        return Segmentation(
            array, dict(plan.labels), scan.reference, record,
            entropy=None if self.uncertainty is None else self.uncertainty.entropy,
            probabilities=None if self.maps is None else dict(zip(self.names, self.maps.maps, strict=True)),
            intervals_ml=intervals, predicted_dice=predicted_dice, counts=self.counts,
            regions=dict(plan.label_regions or {}),
        )  # fmt: skip
