"""Networks whose last step is a 1×1×1 convolution can be blended before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class PointwiseHead:
    """A network split into features and the linear map that follows voxel by voxel.

    Args:
        features: tiles (B, C, *tile) to features (B, F, *tile).
        weight: (classes, F).
        bias: (classes,) or None.
    """

    features: Callable[[torch.Tensor], torch.Tensor]
    weight: torch.Tensor
    bias: torch.Tensor | None


def split_head(network: nn.Module) -> PointwiseHead | None:
    """The network's features and head, where blending features holds fewer channels than blending logits.

    Returns:
        None for a network without `features` and `head`, with a head that looks at neighbours (3×3), or with as many
        feature channels as classes.
    """
    features, head = getattr(network, "features", None), getattr(network, "head", None)
    if not callable(features) or not isinstance(head, nn.Conv2d | nn.Conv3d) or not _is_pointwise(head):
        return None
    if head.in_channels >= head.out_channels:
        return None
    weight = head.weight.detach().flatten(1).float()
    return PointwiseHead(features, weight, None if head.bias is None else head.bias.detach().float())


def _is_pointwise(conv: nn.Conv2d | nn.Conv3d) -> bool:
    ones = all(n == 1 for sizes in (conv.kernel_size, conv.stride) for n in sizes)
    return ones and conv.groups == 1 and not isinstance(conv.padding, str) and not any(conv.padding)
