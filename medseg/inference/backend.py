"""What turns a batch of tiles into values: the network on a device, at a precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, Protocol

import torch
from monai.data import MetaTensor
from torch import nn

from medseg.errors import OptionError
from medseg.inference.pointwise_head import PointwiseHead, split_head

Precision = Literal["fp32", "bf16"]


class Backend(Protocol):
    """A network made ready to run.

    `head_weight` and `head_bias` are the 1×1×1 head still to be applied to its values; None where they are logits.
    """

    name: str
    device: torch.device
    precision: Precision
    head_weight: torch.Tensor | None
    head_bias: torch.Tensor | None

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """Values (B, K, *tile) of tiles (B, C, *tile)."""
        ...


class TorchBackend:
    """The network itself, eager or already compiled by the caller.

    Args:
        network: put into eval mode and moved to the device.
        device: where it runs.
        precision: "fp32", or "bf16" by autocast (which keeps norms and the accumulation in fp32).
        blend_features: give features instead of logits where that is fewer channels.
    """

    name = "torch"

    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        precision: Precision = "fp32",
        blend_features: bool = True,
    ) -> None:
        if precision not in ("fp32", "bf16"):
            raise OptionError(f"precision must be fp32 or bf16, found {precision!r}")
        self.network = network.to(device).eval()
        self.device = device
        self.precision: Precision = precision
        split: PointwiseHead | None = split_head(network) if blend_features else None
        self.run = self.network if split is None else split.features
        self.head_weight = None if split is None else split.weight
        self.head_bias = None if split is None else split.bias

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """See `Backend`."""
        with torch.inference_mode(), self._autocast():
            values = self.run(tiles.to(self.device))
        return values.as_tensor() if isinstance(values, MetaTensor) else values

    def _autocast(self) -> AbstractContextManager:
        return nullcontext() if self.precision == "fp32" else torch.autocast(self.device.type, torch.bfloat16)
