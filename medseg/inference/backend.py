"""What turns a batch of tiles into values: the network on a device, at a precision."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, Protocol

import torch
from monai.data import MetaTensor
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from medseg.errors import OptionError
from medseg.inference.pointwise_head import PointwiseHead, split_head

logger = logging.getLogger(__name__)

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
    """The network itself, eager or compiled.

    In fp32 it is fp32: TF32 is not used on CUDA. A batch that does not fit into the device's memory is halved, for
    good; a single tile that does not fit raises. Tiles that bf16 gives no finite values for are computed in fp32.

    Args:
        network: put into eval mode and moved to the device.
        device: where it runs.
        precision: "fp32", or "bf16" by autocast (which keeps norms and the accumulation in fp32).
        blend_features: give features instead of logits where that is fewer channels.

    Raises:
        OptionError: the precision is none of these.
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
        self.eager: Callable[[torch.Tensor], torch.Tensor] = self.network if split is None else split.features
        self.run = self.eager
        self.head_weight = None if split is None else split.weight
        self.head_bias = None if split is None else split.bias
        self.most_tiles: int | None = None

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """See `Backend`."""
        while True:
            at_once = min(len(tiles), self.most_tiles or len(tiles))
            try:
                with torch.inference_mode():
                    values = [self._forward(part) for part in tiles.split(max(1, at_once))]
                    return values[0] if len(values) == 1 else torch.cat(values)
            except torch.OutOfMemoryError:
                if at_once <= 1:
                    raise
            self.most_tiles = at_once // 2  # outside of the handler, whose traceback holds the tensors
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _forward(self, tiles: torch.Tensor) -> torch.Tensor:
        # the memory estimate asks for shapes, not for numbers, and cannot look into a compiled network
        is_estimate = isinstance(tiles, FakeTensor)
        tiles = tiles.to(self.device)
        with self._arithmetic(self.precision):
            values = (self.eager if is_estimate else self.run)(self._arranged(tiles))
        if self.precision == "bf16" and not is_estimate and not values.sum(dtype=torch.float32).isfinite():
            # oneDNN's bf16 kernels can let a NaN left in memory into products (see `medseg.training.FiniteSteps`)
            logger.warning("bf16 gave values that are not finite; these tiles are computed in fp32")
            with self._arithmetic("fp32"):
                values = self.eager(tiles)
        return values.as_tensor() if isinstance(values, MetaTensor) else values

    def _arranged(self, tiles: torch.Tensor) -> torch.Tensor:
        """Channels last where that was measured to be faster: a CPU's bf16 (1.3 times; fp32 gains nothing)."""
        if self.device.type != "cpu" or self.precision == "fp32" or tiles.ndim not in (4, 5):
            return tiles
        return tiles.contiguous(memory_format=torch.channels_last if tiles.ndim == 4 else torch.channels_last_3d)

    def _arithmetic(self, precision: Precision) -> AbstractContextManager:
        if precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        if self.device.type == "cuda":
            kept = torch.backends.cudnn
            return kept.flags(True, kept.benchmark, kept.benchmark_limit, kept.deterministic, allow_tf32=False)
        return nullcontext()
