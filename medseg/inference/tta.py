"""Test-time augmentation by flips, each undone before the mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import torch

from medseg.errors import PlanError
from medseg.plan import Plan


def flip_axes(plan: Plan) -> tuple[int, ...]:
    """The axes a model may be flipped along.

    Raises:
        PlanError: the network was not trained to mirror any axis.
    """
    if not plan.mirror_axes:
        raise PlanError(
            f"{plan.name}: test-time flips are refused: the plan's mirror_axes is empty, the network never saw "
            "mirrored images (on hippocampus crops flipping costs Dice 0.90 → 0.29); use --tta none"
        )
    return tuple(sorted(set(plan.mirror_axes)))


class FlippedMean:
    """Mean of the values over every combination of flips, each flipped back: Σ_f f⁻¹(predict(f(x))) / 2^axes.

    Args:
        predict: tiles (B, C, *tile) to values (B, K, *tile).
        axes: spatial axes of the model grid, from 0.
    """

    def __init__(self, predict: Callable[[torch.Tensor], torch.Tensor], axes: Sequence[int]) -> None:
        self.predict = predict
        self.flips = [
            [axis + 2 for axis in chosen] for count in range(len(axes) + 1) for chosen in combinations(axes, count)
        ]

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """The mean values (B, K, *tile)."""
        total = self.predict(tiles).to(torch.float32, copy=True)
        for dims in self.flips[1:]:
            total += self.predict(tiles.flip(dims)).flip(dims)
        return total.div_(len(self.flips))
