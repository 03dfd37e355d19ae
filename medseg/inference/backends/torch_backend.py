"""Run a network on batches of tiles with PyTorch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from medseg.errors import OptionError
from medseg.networks.precision import Precision, autocast
from medseg.transforms.meta_tensor import without_meta

logger = logging.getLogger(__name__)


class Backend(Protocol):
    """A network that is ready to run.

    Its values are logits, or features to which the pointwise head (`head_weight`, `head_bias`) is still to be applied.
    For logits, both are None.
    """

    name: str
    device: torch.device
    precision: Precision
    head_weight: torch.Tensor | None
    head_bias: torch.Tensor | None

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """Return the values (B, K, *tile) of tiles (B, C, *tile)."""
        ...


class TorchBackend:
    """The network in PyTorch.

    fp32 does not use TF32 on CUDA. A batch that does not fit into the device's memory is halved, also for later calls;
    a single tile that does not fit raises an error. Tiles for which low precision gives values that are not finite are
    computed again in fp32.

    Args:
        network: put into eval mode and moved to the device.
        device: where it runs.
        precision: "fp32", or "bf16" or "fp16" by autocast, which keeps normalisation and accumulation in fp32.
        blend_features: return features instead of logits if they are fewer channels.

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
        if precision not in ("fp32", "bf16", "fp16"):
            raise OptionError(f"the precision of torch must be fp32, bf16 or fp16, found {precision!r}")
        self.network = network.to(device).eval()
        self.device = device
        self.precision: Precision = precision
        split = split_head(network) if blend_features else None
        self.run: Callable[[torch.Tensor], torch.Tensor] = self.network if split is None else split.features
        self.head_weight = None if split is None else split.weight
        self.head_bias = None if split is None else split.bias
        self.batch_limit: int | None = None

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """See `Backend`."""
        while True:
            size = min(len(tiles), self.batch_limit or len(tiles))
            try:
                with torch.inference_mode():
                    values = [self._forward(part) for part in tiles.split(max(1, size))]
                    return values[0] if len(values) == 1 else torch.cat(values)
            except torch.OutOfMemoryError:
                if size <= 1:
                    raise
            self.batch_limit = size // 2  # outside of the handler, because its traceback keeps the tensors alive
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _forward(self, tiles: torch.Tensor) -> torch.Tensor:
        is_estimate = isinstance(tiles, FakeTensor)  # the memory estimate's tensors have no values
        tiles = tiles.to(self.device)
        with self._arithmetic(self.precision):
            values = self.run(self._arranged(tiles))
        # oneDNN's bf16 kernels can read uninitialised memory in the padding, which may hold NaN. fp16 may overflow.
        can_fail = self.precision == "fp16" or (self.precision == "bf16" and tiles.device.type == "cpu")
        if can_fail and not is_estimate and not values.sum(dtype=torch.float32).isfinite():
            logger.warning(f"{self.precision} gave values that are not finite; these tiles are computed in fp32")
            with self._arithmetic("fp32"):
                values = self.run(tiles)
        return without_meta(values)

    def _arranged(self, tiles: torch.Tensor) -> torch.Tensor:
        """Lay tiles out channels-last if that is faster: 1.3 times for bf16 on a CPU, nothing for fp32."""
        if self.device.type != "cpu" or self.precision == "fp32" or tiles.ndim not in (4, 5):
            return tiles
        return tiles.contiguous(memory_format=torch.channels_last if tiles.ndim == 4 else torch.channels_last_3d)

    def _arithmetic(self, precision: Precision) -> AbstractContextManager:
        if precision != "fp32":
            return autocast(self.device, precision)
        if self.device.type == "cuda":
            cudnn = torch.backends.cudnn
            return cudnn.flags(True, cudnn.benchmark, cudnn.benchmark_limit, cudnn.deterministic, allow_tf32=False)
        return nullcontext()


class EnsembleBackend:
    """Mean logits of several backends, such as the folds of a cross-validation.

    Features of different networks cannot be averaged, so the members must return logits (`blend_features=False`).

    Args:
        members: at least one backend, all on one device.

    Raises:
        ValueError: there is no member, or a member returns features.
    """

    head_weight: torch.Tensor | None = None
    head_bias: torch.Tensor | None = None

    def __init__(self, members: Sequence[Backend]) -> None:
        if not members:
            raise ValueError("an ensemble needs at least one network")
        if any(member.head_weight is not None for member in members):
            raise ValueError("members of an ensemble must return logits; build them with blend_features=False")
        self.members = list(members)
        self.name = f"{members[0].name} ensemble of {len(members)}" if len(members) > 1 else members[0].name
        self.device = members[0].device
        self.precision: Precision = members[0].precision

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """See `Backend`."""
        total = self.members[0](tiles).to(torch.float32, copy=True)
        for member in self.members[1:]:
            total += member(tiles)
        return total.div_(len(self.members))


class StackedBackend(EnsembleBackend):
    """Logits of several backends side by side: (B, members · K, *tile), those of one member after the other."""

    def __init__(self, members: Sequence[Backend]) -> None:
        super().__init__(members)
        self.num_stacked = len(self.members)

    @property
    def averaged(self) -> EnsembleBackend:
        """The ensemble that returns the mean logits."""
        return EnsembleBackend(self.members)

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """See `Backend`."""
        return torch.cat([member(tiles) for member in self.members], dim=1)


@dataclass(frozen=True)
class PointwiseHead:
    """A network split into its features and the linear map that is applied to each voxel.

    Args:
        features: maps tiles (B, C, *tile) to features (B, F, *tile).
        weight: (classes, F).
        bias: (classes,) or None.
    """

    features: Callable[[torch.Tensor], torch.Tensor]
    weight: torch.Tensor
    bias: torch.Tensor | None


def split_head(network: nn.Module) -> PointwiseHead | None:
    """Split off the head of a network whose features are fewer channels than its logits.

    Returns:
        None for a network without `features` and `head`, with a head larger than 1×1×1, or with at least as many
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


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """Return the device of that name; "auto" takes CUDA, else Apple's MPS, else the CPU.

    Raises:
        OptionError: the device does not exist here.
    """
    if isinstance(name, torch.device):
        return name
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, _, number = name.partition(":")
    is_available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    count = torch.cuda.device_count() if kind == "cuda" else 1
    has_number = number.isdecimal() and int(number) < count if ":" in name else True
    if not is_available.get(kind, False) or not has_number:
        choices = ", ".join(["auto", *(k for k, available in is_available.items() if available)])
        raise OptionError(f"device {name!r} is not available here; choose one of {choices}")
    return torch.device(name)
