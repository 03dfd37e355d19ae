"""A predictor that counts the forward passes of its network."""

from __future__ import annotations

from typing import Any

import torch
from inference.plans import small_plan
from inference.thin_network import ThresholdNetwork

from medseg.inference import Predictor

TWO = {"background": 0, "bright": 1}


class CountingNetwork(ThresholdNetwork):
    """A network that counts its forward passes."""

    def __init__(self, level: float = 0.0) -> None:
        super().__init__(level)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(x)


def make_predictor(**options: Any) -> Predictor:
    plan = small_plan(labels=TWO, normalization=[{"scheme": "none"}], spacing=None)
    predictor = Predictor(CountingNetwork(), plan, "cpu", **options)
    calls(predictor)
    return predictor


def calls(predictor: Predictor) -> int:
    """Return the forward passes since the last call of this function."""
    network: CountingNetwork = predictor.backend.network  # type: ignore[attr-defined]
    counted, network.calls = network.calls, 0
    return counted
