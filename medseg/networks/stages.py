"""One resolution level of an encoder-decoder network: convolutions on the way down, or on the way up with a skip."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medseg.errors import NetworkError
from medseg.networks.blocks import (
    AVERAGE_POOL,
    MAX_POOL,
    ConvBlock,
    LinearUpsample,
    Upsampling,
    centre_crop,
    make_activation,
    pad_to,
    transposed_convolution,
)
from medseg.networks.folding import composed_kernel, convolve_folded, folds_of, is_worth_folding


class JoiningStage(nn.Module):
    """A stage that begins with upsampling, joining and convolving.

    Args:
        upsample: from the coarser map.
        convolutions: blocks, of the joined maps.
        upsampled_first: whether the upsampled map has the first channels of the joined one, or the last.
    """

    upsample: Any
    convolutions: Any
    composed: Tensor | None

    def __init__(self, upsample: nn.Module, convolutions: nn.Module, upsampled_first: bool) -> None:
        super().__init__()
        self.upsample = upsample
        self.convolutions = convolutions
        self.upsampled_first = upsampled_first
        self.folds = folds_of(upsample, next(convolutions.children()))
        self.register_buffer("composed", None, persistent=False)

    def compose(self) -> None:
        """Keep the composed kernel of the weights as they are now, where folding is less work.

        For a network whose weights will not change: exporters see a constant. Else it is composed in every pass.
        """
        if self.folds and is_worth_folding(self.folds, self.upsample, self.convolutions[0].conv, None):
            self.composed = self._composed().detach()

    def begin(self, coarser: Tensor, same_level: Sequence[Tensor]) -> tuple[Tensor, list[nn.Module]]:
        """Return the joined maps, convolved already where folding is less work, and the layers that still follow.

        The layers are left to the caller, so that without gradients the maps are freed as soon as they are joined.
        """
        first, *others = self.convolutions.children()
        if not self._is_folded(coarser, same_level[0]):
            return self.join(coarser, same_level), [first, *others]
        skip = same_level[0] if len(same_level) == 1 else torch.cat(list(same_level), dim=1)
        composed = self._composed() if self.composed is None else self.composed
        x = convolve_folded(self.folds, composed, coarser, skip, self._kernels()[1], first.conv.bias)
        return x, [*list(first.children())[1:], *others]

    def join(self, coarser: Tensor, same_level: Sequence[Tensor]) -> Tensor:
        """Return the maps of this level and the upsampled one as one."""
        upsampled = self.upsample(coarser)
        return torch.cat([upsampled, *same_level] if self.upsampled_first else [*same_level, upsampled], dim=1)

    def _is_folded(self, coarser: Tensor, skip: Tensor) -> bool:
        # measured on CPUs only; and what is exported has plain layers, which other runtimes know how to make fast
        is_exported = torch.jit.is_tracing() or torch.compiler.is_exporting()
        if not self.folds or skip.device.type != "cpu" or (is_exported and self.composed is None):
            return False
        enlarged = [fold.stride * n for fold, n in zip(self.folds, coarser.shape[2:], strict=True)]
        if list(skip.shape[2:]) != enlarged:
            return False
        convolution, voxels = self.convolutions[0].conv, len(skip) * skip[0, 0].numel()
        return self.composed is not None or is_worth_folding(self.folds, self.upsample, convolution, voxels)

    def _composed(self) -> Tensor:
        return composed_kernel(self.folds, self.upsample, self._kernels()[0])

    def _kernels(self) -> tuple[Tensor, Tensor]:
        """The parts of the convolution's kernel that fall on the upsampled map and on the others."""
        kernel, upsampled = self.convolutions[0].conv.weight, self.upsample.out_channels
        if self.upsampled_first:
            return kernel[:, :upsampled], kernel[:, upsampled:]
        return kernel[:, -upsampled:], kernel[:, :-upsampled]


def compose_stages(network: nn.Module) -> None:
    """Compose the kernels of every stage of a network in place; its weights must not change afterwards."""
    for module in network.modules():
        if isinstance(module, JoiningStage):
            module.compose()


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
