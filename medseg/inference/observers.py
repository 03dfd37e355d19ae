"""What may be kept of a prediction beside its labels: probabilities, and how certain they are."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Literal

import numpy as np
import torch

# Probability thresholds whose volumes bound a structure: sure of it, and not sure it is absent.
INTERVAL = (0.75, 0.25)


def probabilities(logits: torch.Tensor, activation: Literal["softmax", "sigmoid"]) -> torch.Tensor:
    """Probability (C, …) of each class or region."""
    return logits.softmax(dim=0) if activation == "softmax" else logits.sigmoid()


class Certainty:
    """Entropy a voxel, and an interval a structure's volume.

    Entropy is that of the softmax divided by log C, or the largest binary entropy of any region divided by log 2: 0
    where the network is sure, 255 where every answer is as likely.

    Args:
        native_shape: of the scan.
        num_channels: classes or regions.
        activation: of the logits.
    """

    def __init__(
        self, native_shape: Sequence[int], num_channels: int, activation: Literal["softmax", "sigmoid"]
    ) -> None:
        self.entropy = np.zeros(tuple(native_shape), dtype=np.uint8)
        self.activation = activation
        self.counts = np.zeros((num_channels, 2), dtype=np.int64)

    def observe(self, logits: torch.Tensor, region: Sequence[slice], native_axes: Sequence[int]) -> None:
        """See `Observer.observe`."""
        p = probabilities(logits, self.activation)
        for column, threshold in enumerate(INTERVAL):
            self.counts[:, column] += (p >= threshold).flatten(1).sum(1).cpu().numpy()
        if self.activation == "softmax":
            entropy = -torch.special.xlogy(p, p).sum(0) / log(max(len(p), 2))
        else:
            entropy = (-torch.special.xlogy(p, p) - torch.special.xlogy(1 - p, 1 - p)).amax(0) / log(2)
        scaled = entropy.mul_(255).round_().clamp_(0, 255).to(torch.uint8)
        self.entropy.transpose(*native_axes)[tuple(region)] = scaled.cpu().numpy()

    def intervals_ml(self, label_names: Sequence[str], voxel_volume_mm3: float) -> dict[str, list[float]]:
        """Smallest and largest likely volume of each structure, in millilitres.

        The voxels whose probability is at least 0.75, and at least 0.25: a statement about the network's doubt, not a
        confidence interval of the anatomy.

        Args:
            label_names: of every channel; "background" is left out.
            voxel_volume_mm3: of one voxel of the scan.
        """
        return {
            name: [float(count * voxel_volume_mm3 / 1000) for count in counts]
            for name, counts in zip(label_names, self.counts, strict=True)
            if name != "background"
        }


class ProbabilityMaps:
    """Probability of every class at every native voxel, in half precision.

    Args:
        native_shape: of the scan.
        num_channels: classes or regions.
        activation: of the logits.
    """

    def __init__(
        self, native_shape: Sequence[int], num_channels: int, activation: Literal["softmax", "sigmoid"]
    ) -> None:
        self.maps = np.zeros((num_channels, *native_shape), dtype=np.float16)
        self.activation = activation

    def observe(self, logits: torch.Tensor, region: Sequence[slice], native_axes: Sequence[int]) -> None:
        """See `Observer.observe`."""
        view = self.maps.transpose(0, *(axis + 1 for axis in native_axes))
        view[(slice(None), *region)] = probabilities(logits, self.activation).cpu().numpy()
