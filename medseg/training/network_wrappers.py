"""Wrap the network for training: a moving average of its weights, and deep supervision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from medseg.errors import NetworkError

Tensors = list[torch.Tensor] | tuple[torch.Tensor, ...]


class AveragedNetwork(AveragedModel):
    """Copy a network and let the copy's parameters follow an exponential moving average.

    w̄ ← d·w̄ + (1 − d)·w after every optimiser step, with d = min(decay, (1 + n) / (10 + n)) after n steps. This warm-up
    keeps the random first weights out of short trainings. Buffers (running statistics) are copied. `module` is the
    averaged network: validate it, promote it.

    Args:
        network: the network that is trained.
        decay: d after the warm-up, in [0, 1).

    Raises:
        ValueError: the decay is outside [0, 1).
    """

    def __init__(self, network: torch.nn.Module, decay: float = 0.998) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), found {decay!r}")
        super().__init__(network, multi_avg_fn=_warm_average(decay))


def _warm_average(decay: float) -> Callable[[Tensors, Tensors, torch.Tensor | int], None]:
    def average(averaged: Tensors, current: Tensors, steps: torch.Tensor | int) -> None:
        warm = min(decay, (1 + int(steps)) / (10 + int(steps)))
        get_ema_multi_avg_fn(warm)(averaged, current, steps)

    return average


class DeepSupervision(torch.nn.Module):
    """Wrap a network for training: `forward` returns the logits of each of its decoder stages, its output first.

    Every intermediate feature map gets a head, as in Zhou et al. 2018 (arXiv:1807.10165, Sec. 3.2) and nnU-Net (Isensee
    et al. 2021). Heads that the network does not have itself are trained with it and discarded afterwards: validate,
    average and promote `network`, and put the wrapper into checkpoints. The loss is
    `medseg.losses.DeepSupervisionLoss`. In eval mode the wrapper returns the network's one tensor.

    Args:
        network: one of medseg's; the heads go to the device of its first parameter.
        levels: number of supervised stages, counted from the output; None supervises all.

    Raises:
        NetworkError: the network has no intermediate features, or fewer stages than `levels`.
    """

    def __init__(self, network: torch.nn.Module, levels: int | None = None) -> None:
        super().__init__()
        if not hasattr(network, "intermediate_heads"):
            raise NetworkError(
                f"deep supervision needs intermediate_features and intermediate_heads, found {type(network).__name__}"
            )
        own: Any = network
        heads = own.intermediate_heads()
        available = len(heads)
        if levels is not None and not 1 <= levels <= available:
            raise NetworkError(f"levels must be between 1 and {available} for this network, found {levels}")
        self.network: Any = network
        self.heads = heads[: levels or available].to(next(network.parameters()).device)

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Return logits (B, C, …) of each supervised stage in training mode, of the network in eval mode."""
        if not self.training:
            return self.network(x)
        features = self.network.intermediate_features(x)
        return [head(feature) for head, feature in zip(self.heads, features, strict=False)]
