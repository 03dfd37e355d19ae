"""Exponential moving average of a network's weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch.optim.swa_utils import AveragedModel

from medseg import weights
from medseg.errors import NetworkError
from medseg.training.iteration import FiniteSteps


class AveragedNetwork(AveragedModel):
    """A copy of a network whose parameters follow an exponential moving average.

    w̄ ← d·w̄ + (1 − d)·w after every optimiser step, with d = min(decay, (1 + n) / (10 + n)) after n steps: the warm-up
    keeps the random first weights out of short trainings. Buffers (running statistics) are copied.

    Args:
        network: the network that is trained.
        decay: d once warm, in [0, 1).

    `module` is the averaged network: validate it, promote it.
    """

    def __init__(self, network: torch.nn.Module, decay: float = 0.998) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), found {decay!r}")
        super().__init__(network, multi_avg_fn=_warm_average(decay))


class WeightAveraging:
    """Training handler that updates an averaged network after every step that moved the weights.

    Args:
        averaged: the averaged network, updated in place.
        network: the network that is trained.
    """

    def __init__(self, averaged: AveragedNetwork, network: torch.nn.Module) -> None:
        self.averaged = averaged
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Follow the network that `engine` trains."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._follow)

    def _follow(self, engine: Engine) -> None:
        if FiniteSteps.of(engine).is_last_skipped:
            return
        self.averaged.update_parameters(self.network)


Tensors = list[torch.Tensor] | tuple[torch.Tensor, ...]


def _warm_average(decay: float) -> Callable[[Tensors, Tensors, torch.Tensor | int], None]:
    @torch.no_grad()
    def average(averaged: Tensors, current: Tensors, steps: torch.Tensor | int) -> None:
        warm = min(decay, (1 + int(steps)) / (10 + int(steps)))
        torch._foreach_lerp_(averaged, current, 1 - warm)

    return average


class DeepSupervision(torch.nn.Module):
    """Wrap a network for training: `forward` returns the logits of each of its decoder stages, the network's own first.

    Every intermediate feature map gets a head, as in Zhou et al. 2018 (arXiv:1807.10165, Sec. 3.2) and nnU-Net (Isensee
    et al. 2021). Heads the network does not have itself are trained with it and thrown away afterwards: validate,
    average and promote `network`, put the wrapper into checkpoints. The loss is `medseg.losses.DeepSupervisionLoss`. In
    eval mode the wrapper returns the network's one tensor.

    Args:
        network: one of medseg's; the heads go to the device and memory format its first parameter is in.
        levels: how many stages are supervised, the network's own first; None = all.

    Raises:
        NetworkError: the network has no intermediate features, or fewer than `levels`.
    """

    def __init__(self, network: torch.nn.Module, levels: int | None = None) -> None:
        super().__init__()
        if not hasattr(network, "intermediate_heads"):
            raise NetworkError(
                f"deep supervision needs intermediate_features and intermediate_heads, found {type(network).__name__}"
            )
        medsegs: Any = network
        heads = medsegs.intermediate_heads()
        available = len(heads)
        if levels is not None and not 1 <= levels <= available:
            raise NetworkError(f"levels must be between 1 and {available} for this network, found {levels}")
        self.network: Any = network
        self.heads = heads[: levels or available].to(next(network.parameters()).device)

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Logits (B, C, …) of each supervised stage in training mode, of the network in eval mode."""
        if not self.training:
            return self.network(x)
        features = self.network.intermediate_features(x)
        return [head(feature) for head, feature in zip(self.heads, features, strict=False)]


def load_initial_weights(network: torch.nn.Module, path: str | Path | None) -> torch.nn.Module:
    """Load `path` into `network` for fine-tuning; None or an empty string leaves the fresh weights.

    A file trained for another number of classes or input channels is adapted (see `medseg.weights.load_into`) and
    what was adapted is said in a warning.

    Raises:
        WeightsError: the file is absent or does not fit in any other way.
    """
    if path:
        report = weights.load_into(network, path, adapt=True)
        warnings.warn(f"training starts from {path}: {report}", stacklevel=2)
    return network
