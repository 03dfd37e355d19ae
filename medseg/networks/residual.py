"""Residual blocks: the encoder of nnU-Net's ResEnc U-Nets and the decoder of UNETR."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from medseg.networks.blocks import AVERAGE_POOL, ConvBlock, make_activation


class ResidualBlock(nn.Module):
    """act(norm(conv(act(norm(conv(x))))) + shortcut(x)), He et al. 2016 (arXiv:1512.03385), Figure 2.

    The shortcut is the identity, an average pooling where the block has a stride, and a 1×1×1 convolution with
    normalisation where it changes the channels (the ResNet-D shortcut, He et al. 2019, arXiv:1812.01187).

    Args:
        spatial_dims: 2 or 3.
        in_channels, out_channels: channels of input and output.
        kernel_size: one number an axis.
        stride: one number an axis, applied by the first convolution.
        shortcut_bias: whether the shortcut's convolution has a bias.
        **block: arguments of `ConvBlock` (norm, norm_affine, activation, bias).
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        *,
        shortcut_bias: bool = False,
        **block: Any,
    ) -> None:
        super().__init__()
        activation = block.pop("activation", "relu")
        self.conv1 = ConvBlock(
            spatial_dims, in_channels, out_channels, kernel_size, stride, activation=activation, **block
        )
        self.conv2 = ConvBlock(spatial_dims, out_channels, out_channels, kernel_size, activation="none", **block)
        steps: list[tuple[str, nn.Module]] = []
        if any(s > 1 for s in stride):
            steps.append(("pool", AVERAGE_POOL[spatial_dims](tuple(stride), tuple(stride))))
        if in_channels != out_channels:
            projection = {**block, "bias": shortcut_bias, "activation": "none"}
            steps.append(("project", ConvBlock(spatial_dims, in_channels, out_channels, 1, **projection)))
        self.shortcut = nn.Sequential(OrderedDict(steps))
        self.act = make_activation(activation, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output (B, out_channels, …)."""
        y = self.conv2(self.conv1(x))
        y += self.shortcut(x)
        return self.act(y)


def residual_chain(
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    count: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    **block: Any,
) -> nn.Sequential:
    """Return `count` residual blocks in a row, the first with `stride` and the change of channels."""
    ones = (1,) * spatial_dims
    return nn.Sequential(
        *(
            ResidualBlock(
                spatial_dims,
                out_channels if i else in_channels,
                out_channels,
                kernel_size,
                ones if i else stride,
                **block,
            )
            for i in range(count)
        )
    )
