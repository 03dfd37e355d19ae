"""The tail of a prediction: resample, apply the head, decide the label, a slab at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Protocol

import torch

from medseg.transforms.label_decision import LabelDecision
from medseg.transforms.resample import SeparableResampler, memory_order

# Voxels decided at once: large enough to hide the cost of a call, small enough to stay in a core's cache.
CHUNK_VOXELS = 1 << 18
# Logits held at once where a head must see every feature of a voxel.
CHUNK_VALUES = 1 << 22
# Native planes that share one resampling within the plane, and the most values that may take.
SLAB_PLANES = 16
SLAB_VALUES = 1 << 25


class Observer(Protocol):
    """Something that wants more than the label of each native voxel."""

    def see(self, logits: torch.Tensor, region: Sequence[slice], native_axes: Sequence[int]) -> None:
        """Look at the logits (C, *region); axis n of the region is native axis native_axes[n]."""
        ...


class LabelTail:
    """Labels of a native region from blended logits, or from blended features and the network's 1×1×1 head.

    A pointwise head commutes with blending and with linear resampling, both weighted means with weights of sum 1:
    Σ w (W f + b) / Σ w = W (Σ w f / Σ w) + b.

    Args:
        resampler: from the model grid to the native grid.
        decision: from logits to label values.
        head_weight: (classes, features) of the head; None where the values are logits already.
        head_bias: (classes,) of the head.
        observers: see all logits of every native voxel.
        slab_values: values that the planes resampled at once may take.
    """

    def __init__(
        self,
        resampler: SeparableResampler,
        decision: LabelDecision,
        head_weight: torch.Tensor | None = None,
        head_bias: torch.Tensor | None = None,
        observers: Sequence[Observer] = (),
        slab_values: int = SLAB_VALUES,
    ) -> None:
        if head_weight is not None:
            decision.check(len(head_weight))
        self.observers = tuple(observers)
        self.resampler = resampler
        self.decision = decision
        self.head_weight = head_weight
        self.head_bias = head_bias
        self.slab_values = slab_values

    def __call__(self, block: torch.Tensor, origin: Sequence[int], region: Sequence[slice], out: torch.Tensor) -> None:
        """Write the labels of a region into `out`.

        Args:
            block: (K, …) values on the model grid, axes in the resampler's streaming order.
            origin: model index of the block's first voxel.
            region: native voxels along each axis, in streaming order.
            out: labels on the whole native grid, axes in native order.
        """
        if any(part.stop <= part.start for part in region):
            return
        if self.head_weight is None:
            self.decision.check(block.shape[0])
        target = out.permute(*self.resampler.native_axes)
        # Logits are resampled a class at a time; features, and logits that someone observes, all at once.
        is_single = self.head_weight is None and not self.observers
        decide = self._from_logits if is_single else self._from_features
        together = 1 if is_single else block.shape[0]
        thickness = min(SLAB_PLANES, max(1, self.slab_values // (together * _size(region[1:]))))
        for start in range(region[0].start, region[0].stop, thickness):
            within = (slice(start, min(start + thickness, region[0].stop)), *region[1:])
            target[within] = decide(block, origin, within)

    def _from_logits(self, block: torch.Tensor, origin: Sequence[int], region: Sequence[slice]) -> torch.Tensor:
        winner, best = _blank(region, block), _blank(region, block)
        step = max(1, CHUNK_VOXELS // _size(region[1:]))
        for channel in range(block.shape[0]):
            planes = self.resampler.across(block[channel : channel + 1], origin, region)
            for begin, part in _parts(region[0], step):
                logits = self.resampler.along(planes, region, part)[0]
                end = begin + len(logits)
                self.decision.see(channel, logits, winner[begin:end], best[begin:end])
        return self.decision.labels_of(winner)

    def _from_features(self, block: torch.Tensor, origin: Sequence[int], region: Sequence[slice]) -> torch.Tensor:
        labels = _blank(region, block, self.decision.dtype)
        planes = self.resampler.across(block, origin, region)
        step = max(1, CHUNK_VALUES // (self.decision.num_channels * _size(region[1:])))
        for begin, part in _parts(region[0], step):
            features = self.resampler.along(planes, region, part)
            logits = features if self.head_weight is None else apply_head(features, self.head_weight, self.head_bias)
            winner, best = torch.empty_like(logits[0]), torch.empty_like(logits[0])
            for channel in range(len(logits)):
                self.decision.see(channel, logits[channel], winner, best)
            labels[begin : begin + features.shape[1]] = self.decision.labels_of(winner)
            for observer in self.observers:
                observer.see(logits, (part, *region[1:]), self.resampler.native_axes)
        return labels


def _blank(region: Sequence[slice], block: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A voxel for each of a region, in the memory order of the block's axes."""
    shape = [part.stop - part.start for part in region]
    order = [axis - 1 for axis in memory_order(block) if axis]
    return torch.empty_permuted(shape, order, dtype=dtype or block.dtype, device=block.device)


def apply_head(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Logits (C, …) of features (K, …): a 1×1×1 convolution as one matrix product, axes in memory as they were."""
    order = [axis for axis in memory_order(values) if axis]
    ordered = values.permute(0, *order)
    logits = weight @ ordered.reshape(values.shape[0], -1)
    if bias is not None:
        logits += bias[:, None]
    back = [order.index(axis) + 1 for axis in range(1, values.ndim)]
    return logits.view(len(logits), *ordered.shape[1:]).permute(0, *back)


def _parts(whole: slice, step: int) -> Iterator[tuple[int, slice]]:
    """Cut a slice into steps: how far each lies into the whole, and the slice itself."""
    for start in range(whole.start, whole.stop, step):
        yield start - whole.start, slice(start, min(start + step, whole.stop))


def _size(region: Sequence[slice]) -> int:
    return prod(part.stop - part.start for part in region)
