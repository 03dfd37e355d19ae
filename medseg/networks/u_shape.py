"""The shared body of the U-shaped networks: encoder → decoder → head."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from medseg.networks import sizes
from medseg.networks.stages import DecoderStage, EncoderStage


class UShape(nn.Module):
    """Encoder → decoder → head, run from lists of stages; `UNet` and `UNet3D` fill the lists.

    Attributes:
        encoder: stages, finest first.
        decoder: stages, coarsest first.
        head: the 1×1×1 convolution from features to logits.
        intermediate_channels: channels of each map `intermediate_features` returns.
    """

    head: nn.Module

    def __init__(
        self,
        encoder: Sequence[EncoderStage],
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
        self.encoder = nn.ModuleList(encoder)
        self.dropout = nn.Dropout(dropout)
        self.decoder = nn.ModuleList(decoder)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, out_channels, …) of `x` (B, in_channels, …)."""
        return self.head(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """Return the decoder's finest map, which `head` turns into logits."""
        return self.intermediate_features(x)[0]

    def intermediate_features(self, x: Tensor) -> list[Tensor]:
        """Return the maps of every decoder stage, finest first; deep supervision puts a head on each."""
        return self.decode(self.encode(x))

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the map of every encoder stage, finest first; dropout falls on the last one."""
        if not (torch.jit.is_tracing() or torch.compiler.is_compiling()):
            sizes.check_input(type(self).__name__, x.shape, self.in_channels, self.axes)
        maps = []
        for stage in self.encoder:
            x = self._run(stage, x)
            maps.append(x)
        maps[-1] = self.dropout(maps[-1])
        return maps

    def decode(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the map of every decoder stage, finest first, from the encoder's maps."""
        x = maps[-1]
        decoded: list[Tensor] = []
        for stage, skip in zip(self.decoder, reversed(maps[:-1]), strict=True):
            x = self._run(stage, x, skip)
            decoded.insert(0, x)
        return decoded

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the spatial shape of the logits for a spatial input `shape`, or raise ShapeError."""
        return sizes.output_shape(type(self).__name__, shape, self.axes)

    def _run(self, stage: nn.Module, *inputs: Tensor) -> Any:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(stage, *inputs, use_reentrant=False)
        return stage(*inputs)
