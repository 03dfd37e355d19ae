"""How the weights of a new network are drawn."""

import math
from typing import Literal

from torch import nn

from medseg.errors import NetworkError

Initialization = Literal["default", "he_normal"]


def initialize(network: nn.Module, initialization: Initialization) -> None:
    """Draw the convolution weights of `network` in place.

    `"he_normal"` draws every convolution weight from N(0, √(2/N)), N the incoming nodes of one neuron, and sets the
    biases to zero (Section 3 of Ronneberger et al. 2015, arXiv:1505.04597; He et al. 2015). `"default"` leaves
    PyTorch's own initialisation. The incoming nodes of a transposed convolution are its input channels times the taps
    that reach one output voxel (kernel volume over stride volume).
    """
    if initialization == "default":
        return
    if initialization != "he_normal":
        raise NetworkError(f"initialization={initialization!r} is not one of default, he_normal")
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            fan_in = module.in_channels * math.prod(module.kernel_size)
        elif isinstance(module, nn.ConvTranspose2d | nn.ConvTranspose3d):
            fan_in = module.in_channels * math.prod(module.kernel_size) // math.prod(module.stride)
        else:
            continue
        nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_in))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
