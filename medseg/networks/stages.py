"""The stages of an encoder-decoder network, one per resolution level, and the residual blocks they may consist of."""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from medseg.networks.blocks import AVERAGE_POOL, ConvBlock, centre_crop, make_activation, pad_to
from medseg.networks.folding import composed_kernel, convolve_folded, folds_of, is_worth_folding


class Stage(nn.Module):
    """Base of the parts of a network that can recompute their activations in the backward pass.

    Where `recompute` is True and gradients are wanted, the activations inside the stage are not kept (activation
    checkpointing, Chen et al. 2016, arXiv:1604.06174). The second run leaves the running statistics of batch
    normalisation as they are, so a training with and without recomputing is the same.
    """

    recompute = False

    def __call__(self, *inputs: Any) -> Any:
        """Run the stage on tensors or lists of tensors."""
        if not (self.recompute and torch.is_grad_enabled()):
            return super().__call__(*inputs)

        def run(*inputs: Any) -> Any:
            # A stage may empty a list it is given, and this runs twice.
            return super(Stage, self).__call__(*(list(i) if isinstance(i, list) else i for i in inputs))

        if torch.compiler.is_compiling():
            return checkpoint(run, *inputs, use_reentrant=False)

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _frozen_statistics(self)

        return checkpoint(run, *inputs, use_reentrant=False, context_fn=contexts)


class Chain(Stage, nn.Sequential):
    """Layers that run one after the other, as one stage."""


def recompute_stages(network: nn.Module) -> None:
    """Make the stages of a network recompute their activations in the backward pass; of nested stages the outer one."""
    for child in network.children():
        if isinstance(child, Stage):
            child.recompute = True
        else:
            recompute_stages(child)


@contextmanager
def _frozen_statistics(stage: nn.Module) -> Iterator[None]:
    norms = [m for m in stage.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    before = [(m, m.momentum, m.num_batches_tracked) for m in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = None
    try:
        yield
    finally:
        for norm, momentum, count in before:
            norm.momentum = momentum
            norm.num_batches_tracked = count


class EncoderStage(Stage):
    """Reduce the resolution (except in the first stage), then convolve."""

    def __init__(self, downsample: nn.Module | None, convolutions: nn.Module) -> None:
        super().__init__()
        self.downsample = nn.Identity() if downsample is None else downsample
        self.convolutions = convolutions

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of this stage (B, C, …)."""
        return self.convolutions(self.downsample(x))


class JoiningStage(Stage):
    """Enlarge the map of the next coarser stage, join it with maps of this resolution, then convolve.

    Enlarging, joining and the first convolution are done as one convolution where that is less work; see
    `medseg.networks.folding`.

    Args:
        upsample: enlarges the coarser map.
        convolutions: blocks that take the joined maps.
        upsampled_first: whether the enlarged map has the first channels of the joined map, or the last ones.
    """

    if TYPE_CHECKING:  # TorchScript would take these for declarations of interfaces
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

    def forward(self, coarser: Tensor, same_level: list[Tensor]) -> Tensor:
        """Return the features of this stage.

        Args:
            coarser: the map of the next coarser stage (B, C, …).
            same_level: the maps of this resolution. The list is emptied as soon as they are joined, so that without
                gradients maps without other references are freed (a fifth of the peak memory of a U-Net).
        """
        if torch.jit.is_scripting():
            return self.convolutions(self.join(coarser, same_level))
        else:  # noqa: RET505 - TorchScript leaves out this branch only if it is an else
            x, layers = self.begin(coarser, same_level)
            same_level.clear()
            for layer in layers:
                x = layer(x)
            return x

    def begin(self, coarser: Tensor, same_level: list[Tensor]) -> tuple[Tensor, list[nn.Module]]:
        """Return the joined maps and the layers still to run; a folded stage has run the first convolution already."""
        first, *others = self.convolutions.children()
        if not self._is_folded(coarser, same_level[0]):
            return self.join(coarser, same_level), [first, *others]
        skip = same_level[0] if len(same_level) == 1 else torch.cat(same_level, dim=1)
        composed = self._composed() if self.composed is None else self.composed
        x = convolve_folded(self.folds, composed, coarser, skip, self._kernels()[1], first.conv.bias)
        return x, [*list(first.children())[1:], *others]

    def join(self, coarser: Tensor, same_level: list[Tensor]) -> Tensor:
        """Return the enlarged coarser map and the maps of this level, concatenated."""
        upsampled = self.upsample(coarser)
        # added and not unpacked with *, which TorchScript does not know
        maps = [upsampled] + same_level if self.upsampled_first else same_level + [upsampled]
        return torch.cat(maps, dim=1)

    def compose(self) -> None:
        """Store the composed kernel of the present weights, if folding is less work.

        For a network whose weights will not change: exporters then see a constant. Otherwise the kernel is composed
        in every pass.
        """
        if self.folds and is_worth_folding(self.folds, self.upsample, self.convolutions[0].conv, None):
            self.composed = self._composed().detach()

    def _is_folded(self, coarser: Tensor, skip: Tensor) -> bool:
        # Measured on CPUs only. Exported networks keep plain layers, which other runtimes know how to make fast.
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
        """Return the convolution's weights for the enlarged map, and those for the other maps."""
        kernel, upsampled = self.convolutions[0].conv.weight, self.upsample.out_channels
        if self.upsampled_first:
            return kernel[:, :upsampled], kernel[:, upsampled:]
        return kernel[:, -upsampled:], kernel[:, :-upsampled]


def compose_stages(network: nn.Module) -> None:
    """Compose the kernels of all stages of a network in place; its weights must not change afterwards."""
    for module in network.modules():
        if isinstance(module, JoiningStage):
            module.compose()


Fit = Literal["exact", "crop", "pad"]


class DecoderStage(JoiningStage):
    """Enlarge the coarser map, join it with the encoder's map of this resolution (first), then convolve.

    Args:
        upsample: enlarges the coarser map.
        convolutions: blocks that take the joined maps.
        fit: "crop" cuts the encoder's map at its centre to the size of the enlarged map (valid convolutions), "pad"
            pads the enlarged map to the size of the encoder's map (odd sizes), "exact" expects equal sizes.
    """

    def __init__(self, upsample: nn.Module, convolutions: nn.Module, fit: Fit = "exact") -> None:
        super().__init__(upsample, convolutions, upsampled_first=False)
        self.fit = fit

    def join(self, coarser: Tensor, same_level: list[Tensor]) -> Tensor:
        """Return the encoder's map, which is the only one of its level, and the enlarged coarser map, concatenated."""
        x, skip = self.upsample(coarser), same_level[0]
        if self.fit == "pad":
            x = pad_to(x, list(skip.shape[2:]))
        elif self.fit == "crop":
            skip = centre_crop(skip, list(x.shape[2:]))
        return torch.cat([skip, x], dim=1)


def convolutions(
    spatial_dims: int, in_channels: int, widths: Sequence[int], kernel_size: Sequence[int], **block: Any
) -> Chain:
    """Return `ConvBlock`s in a row; block n has `widths[n]` output channels, and all have the arguments `block`."""
    channels = [in_channels, *widths]
    return Chain(
        *(ConvBlock(spatial_dims, channels[i], channels[i + 1], kernel_size, **block) for i in range(len(widths)))
    )


class ResidualBlock(nn.Module):
    """act(norm(conv(act(norm(conv(x))))) + shortcut(x)), Figure 2 of He et al. 2016 (arXiv:1512.03385).

    The shortcut is the identity. A block with a stride has an average pooling in it, and a block that changes the
    channels a 1×1×1 convolution with normalisation (the ResNet-D shortcut, He et al. 2019, arXiv:1812.01187).

    Args:
        spatial_dims: 2 or 3.
        in_channels, out_channels: channels of input and output.
        kernel_size: one number per axis.
        stride: one number per axis, applied by the first convolution.
        activation: see `make_activation`.
        **block: further arguments of `ConvBlock` (norm, norm_affine, bias). The shortcut's convolution has no bias.
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        *,
        activation: Literal["relu", "leaky_relu", "prelu", "gelu", "none"] = "relu",
        **block: Any,
    ) -> None:
        super().__init__()
        self.conv1 = ConvBlock(
            spatial_dims, in_channels, out_channels, kernel_size, stride, activation=activation, **block
        )
        self.conv2 = ConvBlock(spatial_dims, out_channels, out_channels, kernel_size, activation="none", **block)
        steps: list[tuple[str, nn.Module]] = []
        if any(s > 1 for s in stride):
            steps.append(("pool", AVERAGE_POOL[spatial_dims](tuple(stride), tuple(stride))))
        if in_channels != out_channels:
            projection = {**block, "bias": False, "activation": "none"}
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
) -> Chain:
    """Return `count` residual blocks in a row; the first has the stride and the change of channels."""
    ones = (1,) * spatial_dims
    first = ResidualBlock(spatial_dims, in_channels, out_channels, kernel_size, stride, **block)
    others = (
        ResidualBlock(spatial_dims, out_channels, out_channels, kernel_size, ones, **block) for _ in range(count - 1)
    )
    return Chain(first, *others)
