"""One resolution level of an encoder-decoder network: convolutions on the way down, or on the way up with a skip."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medseg.errors import NetworkError
from medseg.networks.blocks import (
    MAX_POOL,
    ConvBlock,
    LinearUpsample,
    Upsampling,
    centre_crop,
    pad_to,
    transposed_convolution,
)
from medseg.networks.joining import JoiningStage

Fit = Literal["exact", "crop", "pad"]


def convolutions(
    spatial_dims: int, in_channels: int, widths: Sequence[int], kernel_size: Sequence[int], **block: Any
) -> nn.Sequential:
    """Return a chain of `ConvBlock`s, the n-th with `widths[n]` output channels."""
    channels = [in_channels, *widths]
    return nn.Sequential(
        *(ConvBlock(spatial_dims, channels[i], channels[i + 1], kernel_size, **block) for i in range(len(widths)))
    )


class EncoderStage(nn.Module):
    """Reduce the resolution (not in the first stage), then convolve."""

    def __init__(self, downsample: nn.Module | None, convolutions: nn.Module) -> None:
        super().__init__()
        self.downsample = nn.Identity() if downsample is None else downsample
        self.convolutions = convolutions

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of this stage, (B, C, …)."""
        return self.convolutions(self.downsample(x))


class DecoderStage(JoiningStage):
    """Raise the resolution, join the skip of the same resolution (skip first), then convolve.

    Args:
        upsample: from the coarser map.
        convolutions: of the joined maps.
        fit: `"crop"` cuts the skip at its centre to the upsampled map (valid convolutions), `"pad"` pads the upsampled
            map to the skip (which lets odd sizes through), `"exact"` needs neither.
    """

    def __init__(self, upsample: nn.Module, convolutions: nn.Module, fit: Fit = "exact") -> None:
        super().__init__(upsample, convolutions, upsampled_first=False)
        self.fit = fit

    def forward(self, x: Tensor, skip: Tensor | list[Tensor]) -> Tensor:
        """Return the features of this stage, at the resolution of `skip` (less the valid convolutions' margin).

        Args:
            x: the coarser map (B, C, …).
            skip: the encoder's map, or a list whose last entry it is. The entry is taken off, so that without gradients
                the map is freed as soon as it has been joined (a fifth of the peak of a U-Net).
        """
        x, layers = self.begin(x, [skip.pop() if isinstance(skip, list) else skip])
        for layer in layers:
            x = layer(x)
        return x

    def join(self, coarser: Tensor, same_level: Sequence[Tensor]) -> Tensor:
        """Return the skip and the upsampled `coarser` as one map."""
        x, [skip] = self.upsample(coarser), same_level
        if self.fit == "pad":
            x = pad_to(x, skip.shape[2:])
        elif self.fit == "crop":
            skip = centre_crop(skip, x.shape[2:])
        return torch.cat([skip, x], dim=1)


def max_pool(spatial_dims: int, stride: Sequence[int]) -> nn.Module:
    """Return a max pooling of `stride` with windows of the same size."""
    return MAX_POOL[spatial_dims](tuple(stride), tuple(stride))


def make_upsample(
    upsampling: Upsampling,
    spatial_dims: int,
    in_channels: int,
    out_channels: int,
    stride: Sequence[int],
    *,
    kernel_size: int | Sequence[int] | None = None,
    bias: bool = True,
    align_corners: bool = False,
) -> nn.Module:
    """Return the upsampling called `upsampling`; `"linear"` has no weights and keeps the channels."""
    if upsampling == "linear":
        return LinearUpsample(spatial_dims, stride, align_corners)
    if upsampling != "transposed":
        raise NetworkError(f"upsampling={upsampling!r} is not one of transposed, linear")
    return transposed_convolution(spatial_dims, in_channels, out_channels, stride, kernel_size, bias)
