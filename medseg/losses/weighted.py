"""Cross entropy with a weight for every voxel."""

from collections.abc import Sequence
from typing import Literal

import monai.losses
import torch
import torch.nn.functional as F
from torch import nn

from medseg.errors import ShapeError

Regions = Sequence[Sequence[int]]


def checked_label(logits: torch.Tensor, label: torch.Tensor, regions: Regions | None) -> torch.Tensor:
    """The label as int64, so that comparisons mean what they say (uint8 255 == −1 holds in torch).

    Raises:
        ShapeError: logits (B, C, …), label (B, 1, …) and regions do not belong together.
    """
    expected = (logits.shape[0], 1, *logits.shape[2:])
    if tuple(label.shape) != expected:
        raise ShapeError(f"label must have shape {expected} for these logits, found {tuple(label.shape)}")
    if regions is not None and len(regions) != logits.shape[1]:
        raise ShapeError(f"{len(regions)} regions need as many channels of logits, found {logits.shape[1]}")
    return plain(label).to(torch.int64)


def voxel_weight(label: torch.Tensor, weight: torch.Tensor | None, ignore_label: int | None) -> torch.Tensor:
    """(B, 1, …) float32 weights: `weight` or 1, and 0 where the label is `ignore_label`."""
    out = torch.ones_like(label, dtype=torch.float32) if weight is None else plain(weight).to(torch.float32)
    if out.shape != label.shape:
        raise ShapeError(f"weight must have the label's shape {tuple(label.shape)}, found {tuple(out.shape)}")
    return out if ignore_label is None else out * (label != ignore_label)


def class_index(label: torch.Tensor, weights: torch.Tensor, num_classes: int) -> torch.Tensor:
    """(B, 1, …) labels, 0 where the voxel's weight is 0: what an unlabelled voxel holds is nobody's business.

    Raises:
        ValueError: another label has no channel of logits. Not checked on a GPU, where it would wait for the device.
    """
    index = label.masked_fill(weights == 0, 0)
    if index.device.type == "cpu" and index.numel() and not 0 <= int(index.min()) <= int(index.max()) < num_classes:
        unknown = sorted(set(index.unique().tolist()) - set(range(num_classes)))
        raise ValueError(
            f"labels must lie in 0..{num_classes - 1}, the channels of the logits, found {unknown}: remap them, "
            "name one of them ignore_label, or give those voxels weight 0"
        )
    return index


def membership(label: torch.Tensor, num_channels: int, regions: Regions | None) -> torch.Tensor:
    """(B, channels, …) bool: is the voxel in the channel's class, or in the channel's region (a set of labels)?"""
    if regions is None:
        classes = torch.arange(num_channels, device=label.device).view(1, -1, *(1,) * (label.ndim - 2))
        return label == classes
    members = [torch.isin(label, torch.tensor(list(region), device=label.device)) for region in regions]
    return torch.cat(members, dim=1)


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """Without MONAI's meta data, whose bookkeeping at every operation slows a loss down."""
    as_tensor = getattr(tensor, "as_tensor", None)
    return as_tensor() if callable(as_tensor) else tensor


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


class DeepSupervisionLoss(monai.losses.DeepSupervisionLoss):
    """MONAI's `DeepSupervisionLoss` (same arguments, same level weights), which also hands voxel weights on.

    L = Σ_i λ_i loss(logits_i, label_i, weight_i), level 0 first, with labels and weights brought to each level's grid
    by nearest-neighbour sampling, so no label value is made up. One tensor of logits is level 0 alone with λ = 1.
    """

    def forward(
        self,
        input: torch.Tensor | Sequence[torch.Tensor],
        target: torch.Tensor,
        weight: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Loss of one (B, C, …) or of several levels against label and weight (B, 1, …) on level 0's grid."""
        levels = [input] if isinstance(input, torch.Tensor) else list(input)
        factors = [1.0] if isinstance(input, torch.Tensor) else self.get_weights(len(levels))
        terms = [
            factor * self.loss(logits, self._at(target, logits), None if weight is None else self._at(weight, logits))
            for factor, logits in zip(factors, levels, strict=True)
        ]
        return torch.stack(terms).sum()

    def _at(self, volume: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        volume = plain(volume)
        if volume.shape[2:] == logits.shape[2:]:
            return volume
        return F.interpolate(volume.float(), size=logits.shape[2:], mode=self.interp_mode)
