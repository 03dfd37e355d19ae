"""What turns a batch of tiles into values: the network on a device, at a precision."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from monai.data import MetaTensor
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from medseg.errors import OptionError
from medseg.networks.precision import Precision, autocast


@dataclass(frozen=True)
class PointwiseHead:
    """A network split into features and the linear map that follows voxel by voxel.

    Args:
        features: tiles (B, C, *tile) to features (B, F, *tile).
        weight: (classes, F).
        bias: (classes,) or None.
    """

    features: Callable[[torch.Tensor], torch.Tensor]
    weight: torch.Tensor
    bias: torch.Tensor | None


def split_head(network: nn.Module) -> PointwiseHead | None:
    """The network's features and head, where blending features holds fewer channels than blending logits.

    Returns:
        None for a network without `features` and `head`, with a head that looks at neighbours (3×3), or with as many
        feature channels as classes.
    """
    features, head = getattr(network, "features", None), getattr(network, "head", None)
    if not callable(features) or not isinstance(head, nn.Conv2d | nn.Conv3d) or not _is_pointwise(head):
        return None
    if head.in_channels >= head.out_channels:
        return None
    weight = head.weight.detach().flatten(1).float()
    return PointwiseHead(features, weight, None if head.bias is None else head.bias.detach().float())


def _is_pointwise(conv: nn.Conv2d | nn.Conv3d) -> bool:
    ones = all(n == 1 for sizes in (conv.kernel_size, conv.stride) for n in sizes)
    return ones and conv.groups == 1 and not isinstance(conv.padding, str) and not any(conv.padding)


logger = logging.getLogger(__name__)


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
            return autocast(self.device, precision)
        if self.device.type == "cuda":
            kept = torch.backends.cudnn
            return kept.flags(True, kept.benchmark, kept.benchmark_limit, kept.deterministic, allow_tf32=False)
        return nullcontext()


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """The device of that name; "auto" takes CUDA, then Apple's MPS, then the CPU.

    Raises:
        OptionError: the device is not there.
    """
    if isinstance(name, torch.device):
        return name
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, _, number = name.partition(":")
    is_there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    count = torch.cuda.device_count() if kind == "cuda" else 1
    is_numbered = number.isdecimal() and int(number) < count if ":" in name else True
    if not is_there.get(kind, False) or not is_numbered:
        choices = ", ".join(["auto", *(k for k, there in is_there.items() if there)])
        raise OptionError(f"device {name!r} is not available here; choose one of {choices}")
    return torch.device(name)


class EnsembleBackend:
    """Mean logits of several backends (folds of a cross-validation, say).

    Features of different networks mean different things, so members must give logits (`blend_features=False`).

    Args:
        members: at least one backend, on one device.

    Raises:
        ValueError: there is no member, or one gives features.
    """

    head_weight: torch.Tensor | None = None
    head_bias: torch.Tensor | None = None

    def __init__(self, members: Sequence[Backend]) -> None:
        if not members:
            raise ValueError("an ensemble needs at least one network")
        if any(member.head_weight is not None for member in members):
            raise ValueError("members of an ensemble must give logits; build them with blend_features=False")
        self.members = list(members)
        self.name = f"{members[0].name} ensemble of {len(members)}" if len(members) > 1 else members[0].name
        self.device = members[0].device
        self.precision: Precision = members[0].precision

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """Mean logits (B, K, *tile)."""
        total = self.members[0](tiles).to(torch.float32, copy=True)
        for member in self.members[1:]:
            total += member(tiles)
        return total.div_(len(self.members))
