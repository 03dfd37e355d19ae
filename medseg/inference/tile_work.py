"""How much arithmetic one tile takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode


def tile_flops(network: nn.Module, shape: Sequence[int]) -> int:
    """Floating-point operations of convolutions and matrix products in one pass over (B, C, *tile), a tile of them.

    The pass is done on tensors without storage.
    """
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
        network(torch.empty(1, *shape[1:], device=device))
    return counter.get_total_flops()
