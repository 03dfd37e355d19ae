"""From logits to label values, a class at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from medseg.errors import ShapeError


class LabelDecision:
    """Turns logits into label values without ever holding classes × voxels.

    softmax: the label of the largest logit, the first of equals. sigmoid: the label of the last region whose logit is
    positive (probability above one half), background elsewhere; regions come in the order of the labels.

    Args:
        label_values: value of each label in label maps, background first.
        activation: "softmax" (one logit a label) or "sigmoid" (one logit a label but the background).
    """

    def __init__(self, label_values: Sequence[int], activation: Literal["softmax", "sigmoid"] = "softmax") -> None:
        if activation not in ("softmax", "sigmoid"):
            raise ValueError(f"activation must be softmax or sigmoid, found {activation!r}")
        self.label_values = [int(v) for v in label_values]
        if not self.label_values or min(self.label_values) < 0:
            raise ValueError(f"label_values must be non-negative integers, found {list(label_values)}")
        self.activation = activation
        self.dtype = smallest_label_dtype(max(self.label_values))

    @property
    def num_channels(self) -> int:
        """How many logits a voxel the decision needs."""
        return len(self.label_values) - (self.activation == "sigmoid")

    def check(self, num_channels: int) -> None:
        """Raise ShapeError where the network has another number of channels."""
        if num_channels != self.num_channels:
            raise ShapeError(
                f"{len(self.label_values)} label values with {self.activation} need {self.num_channels} channel(s) of "
                f"logits, found {num_channels}"
            )

    def see(self, channel: int, logits: torch.Tensor, winner: torch.Tensor, best: torch.Tensor) -> None:
        """Take one class's logits into account; call it for the channels in order, from 0.

        Everything is done in the logits' own floating type: vectorised, where comparing to booleans and filling by
        them is five to ten times slower.

        Args:
            channel: which class.
            logits: its logits, any shape.
            winner: number of the label so far (see `labels_of`), same shape and type; changed in place, overwritten by
                channel 0.
            best: the largest logit so far, same shape and type; changed in place, overwritten by channel 0.
        """
        if self.activation == "sigmoid":
            if channel == 0:
                winner.zero_()
            is_better = torch.gt(logits, 0, out=torch.empty_like(logits))
            winner.lerp_(_number(channel + 1, winner), is_better)
        elif channel == 0:
            winner.zero_()
            best.copy_(logits)
        else:
            is_better = torch.gt(logits, best, out=torch.empty_like(logits))
            winner.lerp_(_number(channel, winner), is_better)
            torch.maximum(best, logits, out=best)

    def labels_of(self, winner: torch.Tensor) -> torch.Tensor:
        """Label values of the label numbers that `see` has found."""
        if self.label_values == list(range(len(self.label_values))):
            return winner.to(self.dtype)
        table = torch.tensor(self.label_values, dtype=self.dtype, device=winner.device)
        return table[winner.int()]


def _number(value: int, like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(value, dtype=like.dtype, device=like.device)


def smallest_label_dtype(largest: int) -> torch.dtype:
    """The smallest integer type that holds labels up to `largest`."""
    return torch.uint8 if largest < 2**8 else torch.int16 if largest < 2**15 else torch.int32
