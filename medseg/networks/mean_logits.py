"""Average the logits of several networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from medseg.errors import NetworkError
from medseg.networks.presets import create


class Ensemble(nn.Module):
    """Mean logits of several networks, such as those of the folds of a cross-validation.

    Args:
        members: networks with the same channels. The mean is computed in fp32, in their order.

    Raises:
        NetworkError: there is no member.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        if not members:
            raise NetworkError("an ensemble needs at least one network; found none")
        self.members = nn.ModuleList(members)

    @property
    def _first(self) -> Any:
        return self.members[0]

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return int(self._first.in_channels)

    @property
    def axes(self) -> tuple[Any, ...]:
        """Sizes that the members can take, per axis; see `medseg.networks.sizes.AxisSizes`."""
        return tuple(self._first.axes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, C, …) to the mean logits (B, K, …)."""
        total = self.members[0](x).to(torch.float32, copy=True)
        for member in self.members[1:]:
            total += member(x)
        return total.div_(len(self.members))


def create_ensemble(num_members: int, name: str, **arguments: Any) -> Ensemble:
    """Create an ensemble of networks of one preset; see `create`.

    Args:
        num_members: number of networks.
        name: preset of each.
        arguments: of each.

    Raises:
        NetworkError: the name or an argument is not valid, or there is no member.
    """
    return Ensemble([create(name, **arguments) for _ in range(num_members)])
