"""What a loss compares the logits with, and which voxels count."""

from collections.abc import Sequence

import torch

from medseg.errors import ShapeError

Regions = Sequence[Sequence[int]]


def voxel_weight(label: torch.Tensor, weight: torch.Tensor | None, ignore_label: int | None) -> torch.Tensor:
    """(B, 1, …) float32 weights: `weight` or 1, and 0 where the label is `ignore_label`."""
    out = torch.ones_like(label, dtype=torch.float32) if weight is None else weight.to(torch.float32)
    if out.shape != label.shape:
        raise ShapeError(f"weight must have the label's shape {tuple(label.shape)}, found {tuple(out.shape)}")
    return out if ignore_label is None else out * (label != ignore_label)


def class_index(label: torch.Tensor, num_classes: int, ignore_label: int | None) -> torch.Tensor:
    """(B, 1, …) int64 labels, ignored ones moved to class 0, where their weight of 0 makes them harmless."""
    index = label.to(torch.int64)
    if ignore_label is not None:
        index = index.masked_fill(label == ignore_label, 0)
    # on a GPU this check would wait for the device at every step
    if index.device.type == "cpu" and index.numel() and not 0 <= int(index.min()) <= int(index.max()) < num_classes:
        raise ValueError(
            f"labels must lie in 0..{num_classes - 1} (the logits' channels) or be ignore_label={ignore_label}, "
            f"found {sorted(set(index.unique().tolist()) - set(range(num_classes)))}"
        )
    return index


def membership(label: torch.Tensor, num_channels: int, regions: Regions | None) -> torch.Tensor:
    """(B, channels, …) bool: is the voxel in the channel's class, or in the channel's region (a set of labels)?"""
    if regions is None:
        classes = torch.arange(num_channels, device=label.device).view(1, -1, *(1,) * (label.ndim - 2))
        return label == classes
    members = [
        torch.isin(label, torch.tensor(list(region), device=label.device, dtype=label.dtype)) for region in regions
    ]
    return torch.cat(members, dim=1)


def check_shapes(logits: torch.Tensor, label: torch.Tensor, regions: Regions | None) -> None:
    """Logits (B, C, …) and label (B, 1, …) belong together."""
    if label.shape != (logits.shape[0], 1, *logits.shape[2:]):
        raise ShapeError(
            f"label must be {(logits.shape[0], 1, *logits.shape[2:])} for these logits, found {tuple(label.shape)}"
        )
    if regions is not None and len(regions) != logits.shape[1]:
        raise ShapeError(f"{len(regions)} regions need as many channels of logits, found {logits.shape[1]}")


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """Without MONAI's meta data, whose bookkeeping at every operation slows a loss down."""
    as_tensor = getattr(tensor, "as_tensor", None)
    return as_tensor() if callable(as_tensor) else tensor
