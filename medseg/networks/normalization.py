"""Normalisation layers by name, and an instance normalisation that keeps the memory format."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.errors import NetworkError

Norm = Literal["batch", "batch_current", "instance", "group", "none"]

_BATCH_NORM: dict[int, type[nn.Module]] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def instance_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Normalise every channel of every sample of `x` (B, C, …) to mean 0 and variance 1, then scale and shift.

    The same values as `torch.nn.functional.instance_norm` up to rounding. That function copies its input to contiguous
    memory on the CPU and so loses channels_last; the same statistics come from a batch normalisation of one sample
    (which keeps the memory format) or, for contiguous input, from a group normalisation with one channel a group.
    Being traced, exported, compiled or on another device, the plain function is used.
    """
    if x.device.type != "cpu" or torch.jit.is_tracing() or torch.compiler.is_compiling():
        return torch.instance_norm(x, weight, bias, None, None, True, 0.0, eps, torch.backends.cudnn.enabled)
    if x.is_contiguous() or x[0, 0].numel() == 1:
        # torch.group_norm, as F.group_norm refuses the map of a single voxel, whose normalised value is 0
        return torch.group_norm(x, x.shape[1], weight, bias, eps)
    normalized = [F.batch_norm(sample, None, None, weight, bias, True, 0.0, eps) for sample in x.split(1)]
    return normalized[0] if len(normalized) == 1 else torch.cat(normalized)


class InstanceNorm2d(nn.InstanceNorm2d):
    """`torch.nn.InstanceNorm2d` without running statistics that keeps channels_last; see `instance_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return `input` (B, C, H, W) normalised a channel and sample."""
        return instance_norm(input, self.weight, self.bias, self.eps)


class InstanceNorm3d(nn.InstanceNorm3d):
    """`torch.nn.InstanceNorm3d` without running statistics that keeps channels_last_3d; see `instance_norm`."""

    def forward(self, input: Tensor) -> Tensor:
        """Return `input` (B, C, D, H, W) normalised a channel and sample."""
        return instance_norm(input, self.weight, self.bias, self.eps)


def batch_norm_current(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Normalise every channel of the batch `x` (B, C, …) by its own mean and variance, then scale and shift.

    `torch.nn.functional.batch_norm` without its test for a single value a channel, which no exporter can follow for
    free sizes; the normalised value is then 0.
    """
    return torch.batch_norm(x, weight, bias, None, None, True, 0.0, eps, torch.backends.cudnn.enabled)


class CurrentBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation with the statistics of the current batch, at test time too."""

    def forward(self, input: Tensor) -> Tensor:
        """Return `input` (B, C, H, W) normalised a channel."""
        return batch_norm_current(input, self.weight, self.bias, self.eps)


class CurrentBatchNorm3d(nn.BatchNorm3d):
    """Batch normalisation with the statistics of the current batch, at test time too."""

    def forward(self, input: Tensor) -> Tensor:
        """Return `input` (B, C, D, H, W) normalised a channel."""
        return batch_norm_current(input, self.weight, self.bias, self.eps)


_CURRENT_NORM: dict[int, type[nn.Module]] = {2: CurrentBatchNorm2d, 3: CurrentBatchNorm3d}
_INSTANCE_NORM: dict[int, type[nn.Module]] = {2: InstanceNorm2d, 3: InstanceNorm3d}


def make_norm(norm: Norm, spatial_dims: int, channels: int, affine: bool = True, num_groups: int = 8) -> nn.Module:
    """Return the normalisation layer called `norm`; `"batch_current"` uses the current batch at test time as well.

    Çiçek et al. 2016 normalise with the statistics of the current batch at test time too, so no running statistics are
    kept.

    Raises:
        NetworkError: the name is unknown, or the channels cannot be split into `num_groups` groups.
    """
    if norm == "none":
        return nn.Identity()
    if norm == "batch":
        return _BATCH_NORM[spatial_dims](channels, affine=affine)
    if norm == "batch_current":
        return _CURRENT_NORM[spatial_dims](channels, affine=affine, track_running_stats=False)
    if norm == "instance":
        return _INSTANCE_NORM[spatial_dims](channels, affine=affine)
    if norm == "group":
        if channels % num_groups:
            raise NetworkError(f"norm='group': {channels} channels cannot be split into {num_groups} groups")
        return nn.GroupNorm(num_groups, channels, affine=affine)
    raise NetworkError(f"norm={norm!r} is not one of batch, batch_current, instance, group, none")
