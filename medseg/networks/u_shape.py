"""The shared body of the U-shaped networks: encoder → decoder → head."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from medseg.networks import sizes
from medseg.networks.blocks import CONVOLUTION, is_eager, make_dropout
from medseg.networks.stages import DecoderStage, recompute_stages


class UShape(nn.Module):
    """A network whose decoder joins the maps of its encoder; `UNet`, `UNet3D` and `UNETR` build the stages.

    Attributes:
        encoder: the encoder's stages, finest first (UNETR: the transformer).
        decoder: the decoder's stages, coarsest first.
        head: the convolution from features to logits.
        intermediate_channels: channels of each map that `intermediate_features` returns.
    """

    if TYPE_CHECKING:  # TorchScript would take these for declarations of interfaces
        encoder: Any
        decoder: Any
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
        self.intermediate_channels = tuple(reversed(decoder_channels))
        self.encoder = encoder
        self.dropout = make_dropout(dropout)
        self.decoder = nn.ModuleList(decoder)
        if activation_checkpointing:
            recompute_stages(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, out_channels, …) of `x` (B, in_channels, …)."""
        return self.head(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """Return the decoder's finest map, which `head` turns into logits."""
        maps = self.encode(x)
        x = maps.pop()
        for stage in self.decoder:
            # The encoder's map is only in this list, so that the stage can free it once it is joined.
            x = stage(x, [maps.pop()])
        return x

    def intermediate_features(self, x: Tensor) -> list[Tensor]:
        """Return the maps of all decoder stages, finest first; deep supervision puts a head on each."""
        maps = self.encode(x)
        x = maps.pop()
        decoded: list[Tensor] = []
        for stage in self.decoder:
            x = stage(x, [maps.pop()])
            decoded.insert(0, x)
        return decoded

    def encode(self, x: Tensor) -> list[Tensor]:
        """Return the maps of all encoder stages, finest first; dropout is applied to the last one."""
        if not torch.jit.is_scripting():
            self.check_input(x)
        maps: list[Tensor] = []
        for stage in self.encoder:
            x = stage(x)
            maps.append(x)
        maps[-1] = self.dropout(maps[-1])
        return maps

    def intermediate_heads(self) -> nn.ModuleList:
        """Return heads for `intermediate_features`: the network's own, and new 1×1×1 convolutions for the others."""
        convolution = CONVOLUTION[self.spatial_dims]
        extra = (convolution(width, self.out_channels, 1) for width in self.intermediate_channels[1:])
        return nn.ModuleList([self.head, *extra])

    def unused_parameters(self) -> tuple[str, ...]:
        """Return the names of the parameters that the forward pass does not use, which are none."""
        return ()

    def check_input(self, x: Tensor) -> None:
        """Raise ShapeError, with the nearest valid sizes, unless the network can take `x`; do nothing while tracing."""
        if is_eager():
            sizes.check_input(type(self).__name__, x.shape, self.in_channels, self.axes)

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the spatial shape of the logits for an input of the spatial `shape`, or raise ShapeError."""
        return sizes.output_shape(type(self).__name__, shape, self.axes)
