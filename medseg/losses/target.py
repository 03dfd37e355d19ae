"""What a loss compares the logits with, and which voxels count."""

from collections.abc import Sequence

import torch

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
