"""Cross entropy and Dice losses with per-voxel weights, ignored labels and overlapping regions."""

from collections.abc import Mapping, Sequence
from typing import Literal

import monai.losses
import torch
import torch.nn.functional as F
from torch import nn

from medseg.errors import ShapeError

Regions = Sequence[Sequence[int]]
PartialLabels = Mapping[int, Sequence[int]] | Mapping[str, Sequence[int]]


class WeightedCrossEntropyLoss(nn.Module):
    """Compute cross entropy with per-voxel weights: the mean over samples of each sample's weighted mean.

    L = 1/B Σ_b [ Σ_x w(x) c(l(x)) (−log p_l(x)(x)) / Σ_x w(x) c(l(x)) ]

    Here p is the softmax of the logits, l the label, w the voxel weight and c the class weight. The sum is Eq. 1 of
    Ronneberger et al. 2015 (arXiv:1505.04597), divided by the sum of the weights. With `regions` the sum also runs over
    the channels r. Each channel is a binary cross entropy of sigmoid(logit) against "l is in region r", with c(r) in
    place of c(l).

    Each sample has its own denominator, so that averaging the gradients of several processes with equal local batches
    equals one process with the whole batch. `denominator="voxels"` divides by the sample's number of voxels (times
    regions) instead. A sparsely annotated sample then counts less, and the scale of w matters.

    A voxel of a partially labelled case may be known to belong to one of several classes only, for example to the
    background or to an organ that was not annotated. A label of `partial_labels` stands for such a set S of classes.
    Its cross entropy is −log Σ_{k∈S} p_k, the marginal loss of Shi et al. 2021 (doi:10.1016/j.media.2021.101979). With
    regions, a region that contains a class of S has no weight there.

    A sample without any weight contributes 0 and still counts in B. If no sample has any weight, the loss is 0 and its
    gradient is zero. The loss is computed in float32, also under autocast.

    Args:
        class_weight: c, one number ≥ 0 per channel of logits; None is 1 for all.
        ignore_label: label of voxels that are left out; None if every voxel has a label.
        regions: one set of labels per channel, which may overlap (sigmoid); None for exclusive classes (softmax).
        denominator: "weights" or "voxels".
        partial_labels: the classes that a label stands for, by label; None or empty if every label is one class.

    Shape:
        logits (B, C, …), label (B, 1, …) integers of any type, weight (B, 1, …) ≥ 0 or None; returns a scalar.

    Raises:
        ValueError: a parameter is outside its range; (call) a label has no channel of logits.
        ShapeError: (call) logits, label, weight, class weights and regions do not fit together.
    """

    class_weight: torch.Tensor | None

    def __init__(
        self,
        class_weight: Sequence[float] | None = None,
        ignore_label: int | None = None,
        regions: Regions | None = None,
        denominator: Literal["weights", "voxels"] = "weights",
        partial_labels: PartialLabels | None = None,
    ) -> None:
        super().__init__()
        if denominator not in ("weights", "voxels"):
            raise ValueError(f"denominator must be weights or voxels, found {denominator!r}")
        if class_weight is not None and (min(class_weight) < 0 or max(class_weight) <= 0):
            raise ValueError(f"class_weight must be non-negative and not all zero, found {list(class_weight)}")
        # not persistent, because the keys of a checkpoint must not depend on the loss
        weights = None if class_weight is None else torch.tensor(list(class_weight), dtype=torch.float32)
        self.register_buffer("class_weight", weights, persistent=False)
        self.ignore_label = ignore_label
        self.regions = None if regions is None else [list(region) for region in regions]
        self.denominator = denominator
        # JSON has only text as keys
        self.partial_labels = {int(label): list(classes) for label, classes in (partial_labels or {}).items()}

    def forward(self, logits: torch.Tensor, label: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        logits, label = _plain(logits), _checked_label(logits, label, self.regions)
        if self.class_weight is not None and len(self.class_weight) != logits.shape[1]:
            raise ShapeError(
                f"class_weight has {len(self.class_weight)} numbers but the logits have {logits.shape[1]} channels"
            )
        with torch.autocast(logits.device.type, enabled=False):
            weights = _voxel_weight(label, weight, self.ignore_label)
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
        """Return unweighted errors and their weights, both (B, …), or (B, regions, …) with regions."""
        per_class = None if self.class_weight is None else self.class_weight.to(logits.device)
        if self.regions is None:
            index = _class_index(label, weights, logits.shape[1], self.partial_labels)[:, 0]
            weights = weights[:, 0] if per_class is None else weights[:, 0] * per_class[index]
            errors = F.cross_entropy(logits, index, reduction="none")
            for partial, classes in self.partial_labels.items():
                marginal = logits.logsumexp(1) - logits[:, classes].logsumexp(1)
                errors = torch.where(label[:, 0] == partial, marginal, errors)
            return errors, weights
        target = _membership(label, logits.shape[1], self.regions).to(logits.dtype)
        if self.partial_labels:
            weights = weights * ~_is_unknown(label, logits.shape[1], self.regions, self.partial_labels)
        if per_class is not None:
            weights = weights * per_class.view(1, -1, *(1,) * (logits.ndim - 2))
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none"), weights.expand_as(logits)


class WeightedDiceCELoss(nn.Module):
    """Add the soft Dice loss and `WeightedCrossEntropyLoss`, each times its factor.

    Dice = 1/(B K) Σ_b Σ_k [ 1 − (2 Σ_x m p_k g_k + ε) / (Σ_x m p_k + Σ_x m g_k + ε) ]

    Here p is the softmax of the logits (the sigmoid with `regions`), g the reference, ε is `smooth`, and m is 1 for
    voxels with a positive weight and a label that is not ignored. The other voxels take no part in Dice. Weights
    otherwise act on the cross entropy alone, because Dice compares sizes. With m = 1 everywhere the Dice term equals
    `monai.losses.DiceLoss`.

    Each sample and class has its own ratio, so that several processes equal one. A sample without an annotated voxel
    contributes 0.

    With `batch_dice` the sums Σ_x also run over the samples, which gives one ratio per class over the batch (`batch` of
    `monai.losses.DiceLoss`). A class that one patch lacks then does not dominate the loss. But the ratio of a batch is
    not the mean of its parts' ratios: with several processes each has the ratio of its local batch, and their averaged
    gradients do not equal those of one process with the whole batch.

    Args:
        class_weight, ignore_label, regions, denominator: see `WeightedCrossEntropyLoss`; class weights act on the
            cross entropy alone.
        partial_labels: see `WeightedCrossEntropyLoss`. A voxel takes no part in the Dice of a class that it may or may
            not belong to.
        include_background: count class 0 in Dice. Regions have no background.
        dice_weight, ce_weight: factors of the two terms.
        smooth: ε > 0, in voxels.
        batch_dice: take one ratio per class over the batch instead of one per sample and class.

    Shape:
        logits (B, C, …), label (B, 1, …) integers of any type, weight (B, 1, …) ≥ 0 or None; returns a scalar.

    Raises:
        ValueError, ShapeError: see `WeightedCrossEntropyLoss`; ValueError also if `smooth` is not positive.
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
        batch_dice: bool = False,
        partial_labels: PartialLabels | None = None,
    ) -> None:
        super().__init__()
        if smooth <= 0:
            raise ValueError(f"smooth must be positive, found {smooth}; otherwise an empty sample would be 0/0")
        self.cross_entropy = WeightedCrossEntropyLoss(class_weight, ignore_label, regions, denominator, partial_labels)
        self.include_background = include_background
        self.dice_weight = dice_weight
        self.ce_weight = ce_weight
        self.smooth = smooth
        self.batch_dice = batch_dice

    def forward(self, logits: torch.Tensor, label: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        cross_entropy = self.cross_entropy(logits, label, weight)
        return self.dice_weight * self.dice(logits, label, weight) + self.ce_weight * cross_entropy

    def dice(self, logits: torch.Tensor, label: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        """Compute the Dice term alone."""
        regions, ignore_label = self.cross_entropy.regions, self.cross_entropy.ignore_label
        logits, label = _plain(logits), _checked_label(logits, label, regions)
        with torch.autocast(logits.device.type, enabled=False):
            weights = _voxel_weight(label, weight, ignore_label)
            mask, partial = weights > 0, self.cross_entropy.partial_labels
            if partial:
                mask = mask & ~_is_unknown(label, logits.shape[1], regions, partial)
            if regions is None:
                probabilities = logits.float().softmax(1)
                label = _class_index(label, weights, logits.shape[1], partial)
            else:
                probabilities = logits.float().sigmoid()
            target = (_membership(label, logits.shape[1], regions) & mask).to(probabilities.dtype)
            probabilities = probabilities * mask
            if regions is None and not self.include_background and logits.shape[1] > 1:
                probabilities, target = probabilities[:, 1:], target[:, 1:]
            axes = tuple(axis for axis in range(logits.ndim) if axis > 1 or (axis == 0 and self.batch_dice))
            overlap = (probabilities * target).sum(axes)
            sizes = probabilities.sum(axes) + target.sum(axes)
            return (1 - (2 * overlap + self.smooth) / (sizes + self.smooth)).mean()


class DeepSupervisionLoss(monai.losses.DeepSupervisionLoss):
    """Sum a loss over several resolution levels, as MONAI's `DeepSupervisionLoss` does, with per-voxel weights.

    L = Σ_i λ_i loss(logits_i, label_i, weight_i), level 0 first

    The arguments and the level weights λ are MONAI's. Labels and weights are sampled at each level's grid by nearest
    neighbour, so that no new label value appears. A single tensor of logits is level 0 with λ = 1.
    """

    def forward(
        self,
        input: torch.Tensor | Sequence[torch.Tensor],
        target: torch.Tensor,
        weight: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute the loss of one level (B, C, …) or a list of levels.

        Args:
            input: logits of one level, or of all levels with level 0, the finest, first.
            target: label (B, 1, …) on level 0's grid.
            weight: per-voxel weights (B, 1, …) on level 0's grid, or None.
        """
        levels = [input] if isinstance(input, torch.Tensor) else list(input)
        factors = [1.0] if isinstance(input, torch.Tensor) else self.get_weights(len(levels))
        terms = [
            factor * self.loss(logits, self._at(target, logits), None if weight is None else self._at(weight, logits))
            for factor, logits in zip(factors, levels, strict=True)
        ]
        return torch.stack(terms).sum()

    def _at(self, volume: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Sample a label map or weights at the grid of a level's logits."""
        volume = _plain(volume)
        if volume.shape[2:] == logits.shape[2:]:
            return volume
        return F.interpolate(volume.float(), size=logits.shape[2:], mode=self.interp_mode)


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """Drop MONAI's metadata, whose bookkeeping at every operation slows a loss down."""
    as_tensor = getattr(tensor, "as_tensor", None)
    return as_tensor() if callable(as_tensor) else tensor


def _checked_label(logits: torch.Tensor, label: torch.Tensor, regions: Regions | None) -> torch.Tensor:
    """Return the label as int64, because torch holds uint8 255 == -1 to be true.

    Raises:
        ShapeError: logits (B, C, …), label (B, 1, …) and regions do not fit together.
    """
    expected = (logits.shape[0], 1, *logits.shape[2:])
    if tuple(label.shape) != expected:
        raise ShapeError(f"label must have shape {expected} for these logits, found {tuple(label.shape)}")
    if regions is not None and len(regions) != logits.shape[1]:
        raise ShapeError(f"{len(regions)} regions need as many channels of logits, found {logits.shape[1]}")
    return _plain(label).to(torch.int64)


def _voxel_weight(label: torch.Tensor, weight: torch.Tensor | None, ignore_label: int | None) -> torch.Tensor:
    """Return (B, 1, …) float32 weights: `weight` or 1, and 0 for voxels of `ignore_label`."""
    out = torch.ones_like(label, dtype=torch.float32) if weight is None else _plain(weight).to(torch.float32)
    if out.shape != label.shape:
        raise ShapeError(f"weight must have the label's shape {tuple(label.shape)}, found {tuple(out.shape)}")
    return out if ignore_label is None else out * (label != ignore_label)


def _class_index(
    label: torch.Tensor, weights: torch.Tensor, num_classes: int, partial_labels: Mapping[int, Sequence[int]]
) -> torch.Tensor:
    """Return (B, 1, …) class indices. Voxels with weight 0 may hold any label; theirs and partial labels become 0.

    Raises:
        ValueError: another voxel's label has no channel of logits. A GPU is not checked, because the check would wait
            for the device.
    """
    index = label.masked_fill(weights == 0, 0)
    for partial in partial_labels:
        index = index.masked_fill(index == partial, 0)
    if index.device.type == "cpu" and index.numel() and not 0 <= int(index.min()) <= int(index.max()) < num_classes:
        unknown = sorted(set(index.unique().tolist()) - set(range(num_classes)))
        raise ValueError(
            f"labels must lie in 0..{num_classes - 1}, the channels of the logits, found {unknown}; remap them, "
            "name one of them ignore_label, or give those voxels weight 0"
        )
    return index


def _is_unknown(
    label: torch.Tensor, num_channels: int, regions: Regions | None, partial_labels: Mapping[int, Sequence[int]]
) -> torch.Tensor:
    """Return (B, channels, …) bool: True where a partial label leaves open whether the voxel belongs to the channel."""
    members = [{number} for number in range(num_channels)] if regions is None else [set(region) for region in regions]
    unknown = [
        [partial for partial, classes in partial_labels.items() if channel & set(classes)] for channel in members
    ]
    return torch.cat([torch.isin(label, torch.tensor(each, device=label.device)) for each in unknown], dim=1)


def _membership(label: torch.Tensor, num_channels: int, regions: Regions | None) -> torch.Tensor:
    """Return (B, channels, …) bool: True where the voxel belongs to the channel's class or region."""
    if regions is None:
        classes = torch.arange(num_channels, device=label.device).view(1, -1, *(1,) * (label.ndim - 2))
        return label == classes
    members = [torch.isin(label, torch.tensor(list(region), device=label.device)) for region in regions]
    return torch.cat(members, dim=1)
