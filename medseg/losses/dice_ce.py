"""Dice plus weighted cross entropy."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from medseg.losses.cross_entropy import WeightedCrossEntropyLoss
from medseg.losses.target import Regions, checked_label, class_index, membership, plain, voxel_weight


class WeightedDiceCELoss(nn.Module):
    """`dice_weight` · soft Dice loss + `ce_weight` · `WeightedCrossEntropyLoss`.

    Dice = 1/(B K) Σ_b Σ_k [ 1 − (2 Σ_x m p_k g_k + ε) / (Σ_x m p_k + Σ_x m g_k + ε) ], ε = `smooth`

    with p the softmax (with `regions`: the sigmoid) of the logits, g the reference and m = [voxel weight > 0 and label
    not ignored]: voxels without annotation take no part, and voxel weights otherwise act on the cross entropy alone,
    because Dice compares sizes. Each sample and class has its own ratio (no batch Dice), so many processes equal one.
    It is `monai.losses.DiceLoss` where m = 1. A sample without an annotated voxel contributes 0.

    Args:
        class_weight, ignore_label, regions, denominator: see `WeightedCrossEntropyLoss`; class weights act on the
            cross entropy alone.
        include_background: whether Dice counts class 0; regions have no background.
        dice_weight, ce_weight: the two terms' factors.
        smooth: ε > 0, in voxels.

    Shape:
        logits (B, C, …), label (B, 1, …) integers in any type, weight (B, 1, …) ≥ 0 or None; returns a scalar.
    """

    def __init__(
        self,
        class_weight: Sequence[float] | None = None,
        ignore_label: int | None = None,
        regions: Regions | None = None,
        denominator: Literal["weights", "voxels"] = "weights",
        include_background: bool = False,
        dice_weight: float = 1.0,
        ce_weight: float = 1.0,
        smooth: float = 1e-5,
    ) -> None:
        super().__init__()
        if smooth <= 0:
            raise ValueError(f"smooth must be positive, found {smooth}: without it an empty sample would be 0/0")
        self.cross_entropy = WeightedCrossEntropyLoss(class_weight, ignore_label, regions, denominator)
        self.include_background = include_background
        self.dice_weight = dice_weight
        self.ce_weight = ce_weight
        self.smooth = smooth

    def forward(self, logits: torch.Tensor, label: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        cross_entropy = self.cross_entropy(logits, label, weight)
        return self.dice_weight * self.dice(logits, label, weight) + self.ce_weight * cross_entropy

    def dice(self, logits: torch.Tensor, label: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        """The Dice term alone."""
        regions, ignore_label = self.cross_entropy.regions, self.cross_entropy.ignore_label
        logits, label = plain(logits), checked_label(logits, label, regions)
        with torch.autocast(logits.device.type, enabled=False):
            weights = voxel_weight(label, weight, ignore_label)
            mask = weights > 0
            if regions is None:
                probabilities = logits.float().softmax(1)
                label = class_index(label, weights, logits.shape[1])
            else:
                probabilities = logits.float().sigmoid()
            target = (membership(label, logits.shape[1], regions) & mask).to(probabilities.dtype)
            probabilities = probabilities * mask
            if regions is None and not self.include_background and logits.shape[1] > 1:
                probabilities, target = probabilities[:, 1:], target[:, 1:]
            axes = tuple(range(2, logits.ndim))
            overlap = (probabilities * target).sum(axes)
            sizes = probabilities.sum(axes) + target.sum(axes)
            return (1 - (2 * overlap + self.smooth) / (sizes + self.smooth)).mean()
