"""Decide the labels of native voxels slab by slab: resample, apply the network's head, take the best class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil, prod
from typing import Any, Literal, Protocol

import torch

from medseg.errors import ShapeError
from medseg.transforms.restore.resample import SeparableResampler, memory_order


class LabelDecision:
    """Turn logits into label values one class at a time, without holding classes × voxels.

    softmax: the label of the largest logit; of equal logits the first label. sigmoid: the label of the last region
    whose logit is positive (a probability above one half), and background elsewhere. Regions have the order of the
    labels.

    Args:
        label_values: value of each label in label maps, background first.
        activation: "softmax" (one logit per label) or "sigmoid" (one logit per label except the background).
        uses_probabilities: interpolate probabilities to the native grid instead of logits, and decide by them.
    """

    def __init__(
        self,
        label_values: Sequence[int],
        activation: Literal["softmax", "sigmoid"] = "softmax",
        uses_probabilities: bool = False,
    ) -> None:
        if activation not in ("softmax", "sigmoid"):
            raise ValueError(f"activation must be softmax or sigmoid, found {activation!r}")
        self.label_values = [int(v) for v in label_values]
        if not self.label_values or min(self.label_values) < 0:
            raise ValueError(f"label_values must be non-negative integers, found {list(label_values)}")
        self.activation = activation
        self.uses_probabilities = uses_probabilities
        self.dtype = smallest_label_dtype(max(self.label_values))

    @property
    def num_channels(self) -> int:
        """The number of logits per voxel that the decision needs."""
        return len(self.label_values) - (self.activation == "sigmoid")

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Return what is interpolated instead of logits (K, …): probabilities, for sigmoid less one half.

        Their decision is that of logits: the largest one, or those above 0.
        """
        return logits.softmax(0) if self.activation == "softmax" else logits.sigmoid().sub_(0.5)

    def logits(self, values: torch.Tensor) -> torch.Tensor:
        """Return logits (K, …) of interpolated values, which may be those of `probabilities`."""
        if not self.uses_probabilities:
            return values
        tiny = torch.finfo(values.dtype).tiny
        if self.activation == "softmax":
            return values.clamp_min(tiny).log_()
        return (0.5 + values).clamp_min(tiny).log_() - (0.5 - values).clamp_min(tiny).log_()

    def check(self, num_channels: int) -> None:
        """Raise ShapeError if the network has another number of channels."""
        if num_channels != self.num_channels:
            raise ShapeError(
                f"{len(self.label_values)} label values with {self.activation} need {self.num_channels} channel(s) of "
                f"logits, found {num_channels}"
            )

    def update(self, channel: int, logits: torch.Tensor, winner: torch.Tensor, best: torch.Tensor) -> None:
        """Take the logits of one class into account; call it for the channels in order, from 0.

        All steps use the floating type of the logits, because comparing into booleans and filling by mask is five to
        ten times slower.

        Args:
            channel: index of the class.
            logits: its logits, any shape.
            winner: index of the best label so far, of the logits' shape and type. Changed in place; channel 0
                overwrites it.
            best: largest logit so far, of the logits' shape and type. Changed in place; channel 0 overwrites it.
        """
        if self.activation == "sigmoid":
            if channel == 0:
                winner.zero_()
            is_better = torch.gt(logits, 0, out=torch.empty_like(logits))
            winner.lerp_(winner.new_full((), channel + 1), is_better)
        elif channel == 0:
            winner.zero_()
            best.copy_(logits)
        else:
            is_better = torch.gt(logits, best, out=torch.empty_like(logits))
            winner.lerp_(winner.new_full((), channel), is_better)
            torch.maximum(best, logits, out=best)

    def labels_of(self, winner: torch.Tensor) -> torch.Tensor:
        """Return the label values of the indices in `winner`."""
        if self.label_values == list(range(len(self.label_values))):
            return winner.to(self.dtype)
        table = torch.tensor(self.label_values, dtype=self.dtype, device=winner.device)
        return table[winner.int()]


def smallest_label_dtype(largest: int) -> torch.dtype:
    """Return the smallest integer type that holds labels up to `largest`."""
    return torch.uint8 if largest < 2**8 else torch.int16 if largest < 2**15 else torch.int32


# Voxels decided together: enough to hide the cost of a call, few enough to stay in a core's cache.
CHUNK_VOXELS = 1 << 18
# Logits computed together where the head needs every feature of a voxel.
CHUNK_VALUES = 1 << 22
# Native planes that are resampled together within the plane, and the largest number of values in them.
SLAB_PLANES = 16
SLAB_VALUES = 1 << 25


class Observer(Protocol):
    """Receives the logits of every native voxel, for example to compute probabilities or volumes."""

    def observe(self, logits: torch.Tensor, region: Sequence[slice], native_axes: Sequence[int]) -> None:
        """Receive the logits (C, *region), where axis n of the region is native axis native_axes[n]."""
        ...


class LabelTarget(Protocol):
    """Receives labels of the native grid: a tensor, or an object that passes them on."""

    def permute(self, *dims: int) -> Any:
        """Return the labels with their axes in another order, so that boxes can be assigned."""
        ...


class LabelRestorer:
    """Restore the labels of a native region from blended logits, or from blended features and the network's head.

    The 1×1×1 head may be applied after blending and linear resampling, because both are weighted means:
    Σ w (W f + b) / Σ w = W (Σ w f / Σ w) + b.

    Args:
        resampler: from the model grid to the native grid.
        decision: from logits to label values.
        head_weight: (classes, features) of the head; None if the values are logits.
        head_bias: (classes,) of the head.
        observers: receive the logits of every native voxel.
        slab_values: largest number of values in the planes that are resampled together.
        rounds_to_half: round interpolated logits to half precision before the decision, as nnU-Net does.
    """

    def __init__(
        self,
        resampler: SeparableResampler,
        decision: LabelDecision,
        head_weight: torch.Tensor | None = None,
        head_bias: torch.Tensor | None = None,
        observers: Sequence[Observer] = (),
        slab_values: int = SLAB_VALUES,
        rounds_to_half: bool = False,
    ) -> None:
        if head_weight is not None:
            decision.check(len(head_weight))
        self.observers = tuple(observers)
        self.resampler = resampler
        self.decision = decision
        self.head_weight = head_weight
        self.head_bias = head_bias
        self.slab_values = slab_values
        self.rounds_to_half = rounds_to_half

    @staticmethod
    def num_bytes(
        resampler: SeparableResampler,
        block: Sequence[int],
        num_values: int,
        num_classes: int,
        has_head: bool,
        is_observed: bool,
        slab_values: int = SLAB_VALUES,
    ) -> int:
        """Return an upper bound in bytes of what restoring one block allocates.

        Args:
            resampler: from the model grid to the native grid.
            block: model voxels of the largest block, in the resampler's streaming order.
            num_values: channels of the block.
            num_classes: logits per voxel.
            has_head: True if the values are features.
            is_observed: True if observers compute probabilities from the logits.
            slab_values: as of the constructor.
        """
        zooms = [axis.native_size / axis.model_size for axis in resampler.axes]
        native = [ceil(block[1] * zooms[1]) + 1, *(axis.native_size for axis in resampler.axes[2:])]
        plane = prod(native)
        largest = prod(max(n, m + halo) for n, m, halo in zip(native, block[1:], resampler.halos[1:], strict=True))
        is_single = not has_head and not is_observed
        together = 1 if is_single else num_values
        planes = min(SLAB_PLANES, max(1, slab_values // (together * plane)))
        # Interpolation holds its input, its result and one more tap of every voxel.
        copies = 3 if any(resampler.halos) else 0
        values = copies * together * largest * (ceil(planes / zooms[0]) + resampler.halos[0])
        if is_single:
            values += 2 * planes * plane + 5 * max(CHUNK_VOXELS, plane)
        else:
            chunk = plane * min(planes, max(1, CHUNK_VALUES // (num_classes * plane)))
            per_voxel = max(copies, 1) * num_values + num_classes * (4 if is_observed else 1) + 4
            values += chunk * per_voxel
        return torch.float32.itemsize * values

    def __call__(self, block: torch.Tensor, origin: Sequence[int], region: Sequence[slice], out: LabelTarget) -> None:
        """Write the labels of a region to `out`.

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
        # Logits are resampled class by class. Features, and logits for observers, are resampled all together.
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
                logits = self._rounded(self.resampler.along(planes, region, part)[0])
                end = begin + len(logits)
                self.decision.update(channel, logits, winner[begin:end], best[begin:end])
        return self.decision.labels_of(winner)

    def _from_features(self, block: torch.Tensor, origin: Sequence[int], region: Sequence[slice]) -> torch.Tensor:
        labels = _blank(region, block, self.decision.dtype)
        planes = self.resampler.across(block, origin, region)
        step = max(1, CHUNK_VALUES // (self.decision.num_channels * _size(region[1:])))
        for begin, part in _parts(region[0], step):
            features = self._rounded(self.resampler.along(planes, region, part))
            logits = features if self.head_weight is None else apply_head(features, self.head_weight, self.head_bias)
            winner, best = torch.empty_like(logits[0]), torch.empty_like(logits[0])
            for channel in range(len(logits)):
                self.decision.update(channel, logits[channel], winner, best)
            labels[begin : begin + features.shape[1]] = self.decision.labels_of(winner)
            if self.observers:
                logits = self.decision.logits(logits)
            for observer in self.observers:
                observer.observe(logits, (part, *region[1:]), self.resampler.native_axes)
        return labels

    def _rounded(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.half().float() if self.rounds_to_half else logits


def _blank(region: Sequence[slice], block: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Allocate one value per voxel of a region, in the memory order of the block's axes."""
    shape = [part.stop - part.start for part in region]
    order = [axis - 1 for axis in memory_order(block) if axis]
    values = torch.float32 if block.dtype == torch.float16 else block.dtype
    return torch.empty_permuted(shape, order, dtype=dtype or values, device=block.device)


def apply_head(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Apply a 1×1×1 convolution to features (K, …) as one matrix product; the axes keep their order in memory."""
    order = [axis for axis in memory_order(values) if axis]
    ordered = values.permute(0, *order)
    logits = weight @ ordered.reshape(values.shape[0], -1)
    if bias is not None:
        logits += bias[:, None]
    back = [order.index(axis) + 1 for axis in range(1, values.ndim)]
    return logits.view(len(logits), *ordered.shape[1:]).permute(0, *back)


def _parts(whole: slice, step: int) -> Iterator[tuple[int, slice]]:
    """Cut a slice into steps; yield the offset of each from the start, and the step."""
    for start in range(whole.start, whole.stop, step):
        yield start - whole.start, slice(start, min(start + step, whole.stop))


def _size(region: Sequence[slice]) -> int:
    return prod(part.stop - part.start for part in region)
