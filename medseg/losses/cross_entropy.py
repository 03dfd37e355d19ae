"""Cross entropy with a weight for every voxel."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from medseg.errors import ShapeError
from medseg.losses.target import Regions, checked_label, class_index, membership, plain, voxel_weight


class WeightedCrossEntropyLoss(nn.Module):
    """Cross entropy with voxel weights, the mean over samples of each sample's weighted mean.

    L = 1/B Σ_b [ Σ_x w(x) c(l(x)) (−log p_l(x)(x)) / Σ_x w(x) c(l(x)) ]

    with p the softmax of the logits, l the label, w the voxel weight and c the class weight: Eq. 1 of Ronneberger et
    al. 2015 (arXiv:1505.04597) made a mean. With `regions` the sum also runs over the channels r, each a binary cross
    entropy of sigmoid(logit) against "l is in region r" with c(r) in place of c(l).

    The denominator is a sample's own, so averaging the gradients of many processes with equal local batches equals one
    process with the whole batch. `denominator="voxels"` divides by the sample's number of voxels (times regions)
    instead: then a sparsely annotated sample weighs less, and the scale of w matters.

    A sample without any weight contributes 0 and still counts in B; if no sample has any, the loss is 0 and has a
    (zero) gradient. Computed in float32, also under autocast.

    Args:
        class_weight: c, one number ≥ 0 a channel of logits; None = 1.
        ignore_label: label value of voxels to leave out; None = every voxel has a label.
        regions: sets of label values, one a channel, which may overlap; None = exclusive classes (softmax).
        denominator: `weights` or `voxels`.

    Shape:
        logits (B, C, …), label (B, 1, …) integers in any type, weight (B, 1, …) ≥ 0 or None; returns a scalar.
    """

    class_weight: torch.Tensor | None

    def __init__(
        self,
        class_weight: Sequence[float] | None = None,
        ignore_label: int | None = None,
        regions: Regions | None = None,
        denominator: Literal["weights", "voxels"] = "weights",
    ) -> None:
        super().__init__()
        if denominator not in ("weights", "voxels"):
            raise ValueError(f"denominator must be weights or voxels, found {denominator!r}")
        if class_weight is not None and (min(class_weight) < 0 or max(class_weight) <= 0):
            raise ValueError(f"class_weight must be non-negative and not all zero, found {list(class_weight)}")
        # not persistent: a checkpoint's keys must not depend on the loss
        weights = None if class_weight is None else torch.tensor(list(class_weight), dtype=torch.float32)
        self.register_buffer("class_weight", weights, persistent=False)
        self.ignore_label = ignore_label
        self.regions = None if regions is None else [list(region) for region in regions]
        self.denominator = denominator

    def forward(self, logits: torch.Tensor, label: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        logits, label = plain(logits), checked_label(logits, label, self.regions)
        if self.class_weight is not None and len(self.class_weight) != logits.shape[1]:
            raise ShapeError(
                f"class_weight has {len(self.class_weight)} numbers, logits have {logits.shape[1]} channels"
            )
        with torch.autocast(logits.device.type, enabled=False):
            weights = voxel_weight(label, weight, self.ignore_label)
            errors, weights = self._errors(logits.float(), label, weights)
            axes = tuple(range(1, errors.ndim))
            sums = (errors * weights).sum(axes)
            if self.denominator == "voxels":
                return (sums / errors[0].numel()).mean()
            totals = weights.sum(axes)
            return (sums / totals.where(totals > 0, 1.0)).mean()

    def _errors(
        self, logits: torch.Tensor, label: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Unweighted errors and their weights, of one shape: (B, …), or (B, regions, …)."""
        per_class = None if self.class_weight is None else self.class_weight.to(logits.device)
        if self.regions is None:
            index = class_index(label, weights, logits.shape[1])[:, 0]
            weights = weights[:, 0] if per_class is None else weights[:, 0] * per_class[index]
            return F.cross_entropy(logits, index, reduction="none"), weights
        target = membership(label, logits.shape[1], self.regions).to(logits.dtype)
        if per_class is not None:
            weights = weights * per_class.view(1, -1, *(1,) * (logits.ndim - 2))
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none"), weights.expand_as(logits)
