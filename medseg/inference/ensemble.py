"""Several networks as one: the mean of their logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from medseg.inference.backend import Backend, Precision


class EnsembleBackend:
    """Mean logits of several backends (folds of a cross-validation, say).

    Features of different networks mean different things, so members must give logits (`blend_features=False`).

    Args:
        members: at least one backend, on one device.

    Raises:
        ValueError: there is no member, or one gives features.
    """

    head_weight: torch.Tensor | None = None
    head_bias: torch.Tensor | None = None

    def __init__(self, members: Sequence[Backend]) -> None:
        if not members:
            raise ValueError("an ensemble needs at least one network")
        if any(member.head_weight is not None for member in members):
            raise ValueError("members of an ensemble must give logits; build them with blend_features=False")
        self.members = list(members)
        self.name = f"{members[0].name} ensemble of {len(members)}" if len(members) > 1 else members[0].name
        self.device = members[0].device
        self.precision: Precision = members[0].precision

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """Mean logits (B, K, *tile)."""
        total = self.members[0](tiles).to(torch.float32, copy=True)
        for member in self.members[1:]:
            total += member(tiles)
        return total.div_(len(self.members))
