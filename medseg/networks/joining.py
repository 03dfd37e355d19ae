"""A stage that raises the resolution, joins maps of that resolution and convolves them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

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
