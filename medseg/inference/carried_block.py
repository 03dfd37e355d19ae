"""Blended sums put aside in half precision until the next slab of tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from medseg.transforms.resample import memory_order

Carried = Literal["fp32", "fp16"]
# Sums are scaled so that the largest of a channel becomes this: below fp16's 65504 after rounding.
LARGEST = 2.0**15


@dataclass(frozen=True)
class HalfBlock:
    """Sums of weighted values in fp16 with one power of two a channel, and the sums of weights in fp32.

    Args:
        values: (K, …) fp16.
        scales: (K,) by which they are multiplied again.
        weights: (…) fp32.
    """

    values: torch.Tensor
    scales: torch.Tensor
    weights: torch.Tensor

    @classmethod
    def of(cls, block: torch.Tensor) -> HalfBlock:
        """Put a block (K + 1, …) aside; its memory may be released."""
        sums = block[:-1]
        largest = torch.stack([torch.stack(torch.aminmax(channel)).abs().max() for channel in sums])
        # A power of two changes no mantissa; a channel of zeros (or of NaN) keeps its scale of 1.
        scales = torch.exp2((largest / LARGEST).log2().ceil().nan_to_num(0.0, 0.0, 0.0))
        values = torch.empty_like(sums, dtype=torch.float16)
        for channel, scale in enumerate(scales.tolist()):
            values[channel] = sums[channel] / scale
        return cls(values, scales, block[-1].clone())

    def restored(self) -> torch.Tensor:
        """The block (K + 1, …) in fp32, with the axes in memory as they were."""
        shape = (len(self.values) + 1, *self.values.shape[1:])
        layout = memory_order(self.values)
        block = torch.empty_permuted(shape, layout, dtype=torch.float32, device=self.values.device)
        for channel, scale in enumerate(self.scales.tolist()):
            block[channel].copy_(self.values[channel]).mul_(scale)
        block[-1] = self.weights
        return block
