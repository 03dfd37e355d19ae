"""The last layer, from features to logits."""

from typing import Literal

from torch import nn

from medseg.errors import NetworkError
from medseg.networks.blocks import CONVOLUTION, Activation, ConvBlock
from medseg.networks.normalization import Norm

HeadKind = Literal["conv", "conv_act_norm", "norm_act_conv"]


def make_head(
    kind: HeadKind,
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    kernel_size: int = 1,
    norm: Norm = "batch",
    activation: Activation = "relu",
) -> nn.Module:
    """Return the head called `kind`.

    `"conv"` is a convolution, 1×1×1 unless told otherwise. The others exist to load published weights:
    `"conv_act_norm"` passes the logits through ReLU and batch normalisation, `"norm_act_conv"` is the pre-activation
    head of a UNet++ re-implementation.
    """
    if kind == "conv":
        return CONVOLUTION[spatial_dims](in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    if kind in ("conv_act_norm", "norm_act_conv"):
        return ConvBlock(
            spatial_dims, in_channels, out_channels, kernel_size, norm=norm, activation=activation, order=kind
        )
    raise NetworkError(f"head={kind!r} is not one of conv, conv_act_norm, norm_act_conv")
