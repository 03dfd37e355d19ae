"""Exponential moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from ignite.engine import Engine, Events
from torch.optim.swa_utils import AveragedModel

from medseg.training.finite_steps import FiniteSteps


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
