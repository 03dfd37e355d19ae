"""Tests of the operations that are counted from shapes, with PyTorch's own counter as oracle."""

from __future__ import annotations

import pytest
import torch
from networks.tiny_networks import PUBLISHED_DIMS, TINY, image, tiny
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from medseg.networks.stages import JoiningStage
from medseg.networks.work import forward_flops


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", list(TINY))
def test_the_count_is_that_of_pytorch(name: str, dims: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JoiningStage, "_is_folded", lambda *_: False)
    network = tiny(name, dims).eval()
    batch = image(network, batch=2)
    # PyTorch counts the products of attention only where they are computed one by one.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(batch)
    assert forward_flops(network, batch.shape) == counter.get_total_flops() > 1000 * PUBLISHED_DIMS[name]
    assert all(parameter.device.type == "cpu" for parameter in network.parameters())


def test_a_shape_that_does_not_fit_is_refused() -> None:
    for layer in (nn.Conv2d(2, 3, 1), nn.ConvTranspose2d(2, 3, 2), nn.Linear(7, 3)):
        with pytest.raises(RuntimeError, match=r"takes (2|7)"):
            forward_flops(layer, (1, 3, 8, 8))


def test_layers_of_other_libraries_are_not_counted() -> None:
    class Foreign(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    assert forward_flops(nn.Sequential(nn.Conv2d(1, 1, 1), Foreign()), (1, 1, 8, 8)) is None
    assert forward_flops(torch.jit.script(nn.Conv2d(1, 1, 1)), (1, 1, 8, 8)) is None
