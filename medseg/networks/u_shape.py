"""The shared body of the U-shaped networks: encoder → decoder → head."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from medseg.networks import sizes
from medseg.networks.blocks import CONVOLUTION, is_eager, make_dropout
from medseg.networks.stages import DecoderStage


def run(stage: nn.Module, *inputs: Tensor, recompute: bool) -> Tensor:
    """Return `stage(*inputs)`, recomputed in the backward pass if `recompute` and gradients are wanted.

    The second run leaves the running statistics of batch normalisation alone, so training with and without
    checkpointing is the same.
    """
    if not (recompute and torch.is_grad_enabled()):
        return stage(*inputs)
    if torch.compiler.is_compiling():
        return checkpoint(stage, *inputs, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _frozen_statistics(stage)

    return checkpoint(stage, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def _frozen_statistics(stage: nn.Module) -> Iterator[None]:
    norms = [m for m in stage.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    kept = [(m, m.momentum, m.num_batches_tracked) for m in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = None
    try:
        yield
    finally:
        for norm, momentum, count in kept:
            norm.momentum = momentum
            norm.num_batches_tracked = count


class UShape(nn.Module):
    """Encoder → decoder → head, run from stages; `UNet`, `UNet3D` and `UNETR` fill them in.

    Attributes:
        encoder: stages, finest first (UNETR: the transformer).
        decoder: stages, coarsest first.
        head: the 1×1×1 convolution from features to logits.
        intermediate_channels: channels of each map `intermediate_features` returns.
    """

    head: nn.Module

    def __init__(
        self,
        encoder: nn.Module,
        decoder: Sequence[DecoderStage],
        *,
        in_channels: int,
        out_channels: int,
        decoder_channels: Sequence[int],
        axes: Sequence[sizes.AxisSizes],
        dropout: float = 0.0,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.spatial_dims = len(axes)
        self.axes = tuple(axes)
        self.activation_checkpointing = activation_checkpointing
        self.intermediate_channels = tuple(reversed(decoder_channels))
        self.encoder = encoder
        self.dropout = make_dropout(dropout)
        self.decoder = nn.ModuleList(decoder)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, out_channels, …) of `x` (B, in_channels, …)."""
        return self.head(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """Return the decoder's finest map, which `head` turns into logits."""
        return self._decode(self.encode(x), keep_all=False)[0]

    def intermediate_features(self, x: Tensor) -> list[Tensor]:
        """Return the maps of every decoder stage, finest first; deep supervision puts a head on each."""
        return self._decode(self.encode(x), keep_all=True)

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the map of every encoder stage, finest first; dropout falls on the last one."""
        self.check_input(x)
        maps: list[Tensor] = []
        for stage in self.encoder.children():
            x = self._run(stage, x)
            maps.append(x)
        maps[-1] = self.dropout(maps[-1])
        return maps

    def intermediate_heads(self) -> nn.ModuleList:
        """Return heads for `intermediate_features`: the network's own first, new 1×1×1 convolutions for the others."""
        convolution = CONVOLUTION[self.spatial_dims]
        extra = (convolution(width, self.out_channels, 1) for width in self.intermediate_channels[1:])
        return nn.ModuleList([self.head, *extra])

    def unused_parameters(self) -> tuple[str, ...]:
        """Return the names of parameters the forward pass does not use: none."""
        return ()

    def check_input(self, x: Tensor) -> None:
        """Raise ShapeError, naming the nearest valid sizes, unless `x` can be used; silent while tracing."""
        if is_eager():
            sizes.check_input(type(self).__name__, x.shape, self.in_channels, self.axes)

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the spatial shape of the logits for a spatial input `shape`, or raise ShapeError."""
        return sizes.output_shape(type(self).__name__, shape, self.axes)

    def _run(self, stage: nn.Module, *inputs: Tensor) -> Tensor:
        return run(stage, *inputs, recompute=self.activation_checkpointing)

    def _decode(self, maps: list[Tensor], keep_all: bool) -> list[Tensor]:
        # maps is consumed, so that without gradients each skip is freed once it has been joined
        x = maps.pop()
        decoded: list[Tensor] = []
        for stage in self.decoder:
            x = self._run(stage, x, maps.pop()) if self.activation_checkpointing else stage(x, maps)
            decoded = [x, *decoded] if keep_all else [x]
        return decoded
