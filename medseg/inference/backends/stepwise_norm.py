"""Compute the statistics of instance normalisation in steps, because OpenVINO adds up a whole channel in one number.

OpenVINO's kernel adds the voxels of a channel one after the other in fp32. Where many of them are equal, such as those
of air, every addition is rounded in the same direction. The mean of a tile of 64³ voxels, half of them air, was wrong
by 1e-3 standard deviations, and the error grows with the tile. Adding up the rows first and then their sums leaves 2e-5
and takes the same time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

_POOL: dict[int, Any] = {4: F.avg_pool2d, 5: F.avg_pool3d}


class StepwiseInstanceNorm(nn.Module):
    """Normalise every channel of every sample, with sums along one axis at a time.

    Args:
        norm: an instance normalisation without running statistics, whose parameters are shared.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm: Any = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (x − mean) / √(variance + eps) · weight + bias of (B, C, …) with two or three spatial axes."""
        if isinstance(x, FakeTensor):  # the memory estimate, which knows the original layer
            return self.norm(x)
        centred = x - _mean_of_rows(x.mean(-1, keepdim=True))
        lengths = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
        variance = _mean_of_rows(lengths * lengths) / int(x.shape[-1])
        scale = torch.rsqrt(variance + self.norm.eps)
        if self.norm.weight is None:
            return centred * scale
        shape = (1, -1, *[1] * (x.ndim - 2))
        return centred * (scale * self.norm.weight.view(shape)) + self.norm.bias.view(shape)


def _mean_of_rows(values: torch.Tensor) -> torch.Tensor:
    """Return the mean over all spatial axes of (B, C, …, 1). Pooling by axis, as OpenVINO would join several means."""
    for axis in range(2, values.ndim - 1):
        kernel = [1] * (values.ndim - 2)
        kernel[axis - 2] = int(values.shape[axis])
        values = _POOL[values.ndim](values, kernel)
    return values


def use_stepwise_norms(network: nn.Module) -> None:
    """Replace the instance normalisations of a network in place."""
    for module in [*network.modules()]:
        for name, child in module.named_children():
            is_instance_norm = isinstance(child, nn.InstanceNorm2d | nn.InstanceNorm3d)
            if is_instance_norm and not isinstance(module, StepwiseInstanceNorm) and not child.track_running_stats:
                setattr(module, name, StepwiseInstanceNorm(child))
