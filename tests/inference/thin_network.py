"""Small networks with known results, for the tests of prediction."""

from __future__ import annotations

import torch
from torch import nn


class ThinNetwork(nn.Module):
    """Two convolutions and a pointwise head, with the `features` and `head` of every medseg network."""

    def __init__(self, features: int, classes: int, spatial_dims: int = 3, in_channels: int = 1) -> None:
        super().__init__()
        conv = nn.Conv3d if spatial_dims == 3 else nn.Conv2d
        self.body = nn.Sequential(
            conv(in_channels, features, 3, padding=1), nn.ReLU(), conv(features, features, 3, padding=1)
        )
        self.head = conv(features, classes, 1)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))


def thin_network(features: int, classes: int, spatial_dims: int = 3, in_channels: int = 1) -> ThinNetwork:
    """Return the network with fixed weights, large enough that many classes win somewhere."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = ThinNetwork(features, classes, spatial_dims, in_channels).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)
    return network


class ThresholdNetwork(nn.Module):
    """Predict class 1 where the first channel is above a level, which can be checked voxel by voxel."""

    def __init__(self, level: float = 0.0) -> None:
        super().__init__()
        self.level = level

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        above = x[:, :1] - self.level
        return torch.cat([-above, above], dim=1)
