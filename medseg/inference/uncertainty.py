"""Keep more of a prediction than its labels: probabilities, entropy, and an interval for each volume."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Literal

import numpy as np
import torch

# A voxel surely belongs to a structure from the first probability on, and possibly from the second on.
INTERVAL = (0.75, 0.25)


class ProbabilityMaps:
    """Keep the probability of every class at every native voxel, in half precision.

    Args:
        native_shape: shape of the scan in voxels.
        num_channels: classes or regions.
        activation: activation of the logits.
    """

    def __init__(
        self, native_shape: Sequence[int], num_channels: int, activation: Literal["softmax", "sigmoid"]
    ) -> None:
        self.maps = np.zeros((num_channels, *native_shape), dtype=np.float16)
        self.activation = activation

    @staticmethod
    def bytes_per_voxel(num_channels: int) -> int:
        """Return the memory per native voxel."""
        return 2 * num_channels

    def observe(self, logits: torch.Tensor, region: Sequence[slice], native_axes: Sequence[int]) -> None:
        """See `Observer.observe`."""
        view = self.maps.transpose(0, *(axis + 1 for axis in native_axes))
        view[(slice(None), *region)] = _probabilities(logits, self.activation).cpu().numpy()


class Uncertainty:
    """Keep an entropy map, and the volumes at two probability thresholds.

    The entropy is that of the softmax divided by log C, or the largest binary entropy of any region divided by log 2.
    It is 0 where the network is sure and 255 where all answers are equally likely.

    Args:
        native_shape: shape of the scan in voxels.
        num_channels: classes or regions.
        activation: activation of the logits.
    """

    def __init__(
        self, native_shape: Sequence[int], num_channels: int, activation: Literal["softmax", "sigmoid"]
    ) -> None:
        self.entropy = np.zeros(tuple(native_shape), dtype=np.uint8)
        self.activation = activation
        self.counts = np.zeros((num_channels, 2), dtype=np.int64)

    @staticmethod
    def bytes_per_voxel() -> int:
        """Return the memory per native voxel."""
        return 1

    def observe(self, logits: torch.Tensor, region: Sequence[slice], native_axes: Sequence[int]) -> None:
        """See `Observer.observe`."""
        p = _probabilities(logits, self.activation)
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


def _probabilities(logits: torch.Tensor, activation: Literal["softmax", "sigmoid"]) -> torch.Tensor:
    return logits.softmax(dim=0) if activation == "softmax" else logits.sigmoid()
