"""Compute the statistics of intensities that normalisation needs, from a volume that is read chunk by chunk."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from medseg.inference.chunked.model_image import ModelImage
from medseg.plan import Plan
from medseg.transforms.normalization import (
    SAFE_RATIO,
    SAFE_SCALES,
    ChannelScaling,
    checked_scheme,
    fixed_scaling,
    may_need_offset,
    offset_of_range,
    scaling_from,
)
from medseg.volumes.zarr_images import boxes

# Voxels that are read and counted together, at most.
PASS_VOXELS = 1 << 22
HALF_BITS = 16


def fit_scalings(image: ModelImage, plan: Plan) -> list[ChannelScaling]:
    """Compute the normalisation of every channel, and check that every voxel is finite.

    The volume is read once for a mean, or if its voxels are floating-point numbers; twice for percentiles; and not at
    all for integers with a fixed normalisation.

    Args:
        image: the network's input. Its offsets are set; its scalings must be None.
        plan: normalisation of each channel.

    Raises:
        VolumeError: a voxel is not finite, or the intensities cannot be normalised.
    """
    scalings = []
    for number, (store, channel) in enumerate(image.channels):
        entry = checked_scheme(plan.normalization[number], number)
        if may_need_offset(store.dtype, entry) and plan.air_below is None:
            ranges = []
            for box in boxes(store.shape, _chunk_size(store.shape, store.chunks)):
                part = store.read(box, channel)
                ranges.append((float(part.min()), float(part.max())))
            lowest, highest = min(low for low, _ in ranges), max(high for _, high in ranges)
            image.offsets[number] = offset_of_range(lowest, highest, store.dtype, str(store.path))
        scaling = fixed_scaling(entry)
        if scaling is None or store.dtype.kind == "f":
            statistics = StreamedIntensities(image, number, entry)
            scaling = scaling_from(statistics, entry, f"{store.path} channel {channel}") if scaling is None else scaling
        scalings.append(scaling)
    return scalings


class StreamedIntensities:
    """Statistics of one channel of a model image, equal to those of the whole image in memory.

    Mean and variance are computed in float64 and rounded to float32, as torch does. Percentiles are exact order
    statistics, because float32 values have the order of their bits: one pass counts the upper 16 bits of every voxel,
    another the lower 16 bits of those that share the upper ones of a wanted percentile.

    Args:
        image: the network's input before normalisation.
        number: of the channel.
        entry: checked scheme; its `foreground` chooses the considered voxels.
    """

    def __init__(self, image: ModelImage, number: int, entry: Mapping[str, Any]) -> None:
        self.image = image
        self.number = number
        self.is_nonzero = entry.get("foreground") == "nonzero"
        self.count = 0
        self.smallest = np.empty(0, np.float32)
        self.largest = np.empty(0, np.float32)
        self.mean = self.squares = 0.0
        self.upper_counts = np.zeros(1 << HALF_BITS, np.int64)
        has_percentiles = entry["scheme"] == "percentile"
        for values in self._parts():
            if values.size:
                self._add(values, has_percentiles)

    def _parts(self) -> Iterator[np.ndarray]:
        for box in self.image.chunk_boxes(PASS_VOXELS):
            values = self.image.channel_box(self.number, box).numpy().reshape(-1)
            yield values[values != 0] if self.is_nonzero else values

    def _add(self, values: np.ndarray, has_percentiles: bool) -> None:
        if self.smallest.size < 2 or values.min() < self.smallest[-1]:
            self.smallest = _ends(np.concatenate([self.smallest, _ends(values, 0)]), 0)
        if self.largest.size < 2 or values.max() > self.largest[0]:
            self.largest = _ends(np.concatenate([self.largest, _ends(values, -1)]), -1)
        mean = float(values.mean(dtype=np.float64))
        squares = float(np.square(values - mean, dtype=np.float64).sum())
        # Chan, Golub and LeVeque 1983: combine the sums of squares of two parts.
        total, shift = self.count + values.size, mean - self.mean
        self.mean += shift * values.size / total
        self.squares += squares + shift**2 * self.count * values.size / total
        self.count = total
        if has_percentiles:
            self.upper_counts += np.bincount(_keys(values) >> HALF_BITS, minlength=1 << HALF_BITS)

    def extremes(self) -> tuple[float, float]:
        """See `Intensities`."""
        return float(self.smallest[0]), float(self.largest[-1])

    def inner_extremes(self) -> tuple[float, float]:
        """See `Intensities`."""
        return float(self.smallest[1]), float(self.largest[0])

    def mean_and_std(self) -> tuple[float, float]:
        """See `Intensities`."""
        variance = self.squares / self.count
        with np.errstate(over="ignore"):
            mean, std = float(np.float32(self.mean)), math.sqrt(float(np.float32(variance)))
        if SAFE_SCALES[0] ** 0.5 < std < SAFE_SCALES[1] ** 0.5 and abs(mean) <= SAFE_RATIO * std:
            return mean, std
        return self.mean, math.sqrt(variance)

    def percentiles(self, percents: Sequence[float]) -> list[float]:
        """See `Intensities`."""
        positions = [(self.count - 1) * (percent / 100) for percent in percents]
        ranks = sorted({rank for p in positions for rank in (math.floor(p), min(math.floor(p) + 1, self.count - 1))})
        ends = np.cumsum(self.upper_counts)
        uppers = np.searchsorted(ends, ranks, side="right")
        lower_counts = {int(upper): np.zeros(1 << HALF_BITS, np.int64) for upper in uppers}
        for values in self._parts():
            keys = _keys(values)
            for upper, counts in lower_counts.items():
                same = keys[keys >> HALF_BITS == upper]
                counts += np.bincount(same & ((1 << HALF_BITS) - 1), minlength=1 << HALF_BITS)
        value_of = {}
        for rank, upper in zip(ranks, uppers.tolist(), strict=True):
            within = rank - (int(ends[upper]) - int(self.upper_counts[upper]))
            lower = int(np.searchsorted(np.cumsum(lower_counts[upper]), within, side="right"))
            value_of[rank] = _value((upper << HALF_BITS) | lower)
        levels = []
        for position in positions:
            rank = math.floor(position)
            below, above = value_of[rank], value_of[min(rank + 1, self.count - 1)]
            part, step = position - rank, float(above - below)
            levels.append(float(below) + step * part if part < 0.5 else float(above) - step * (1 - part))
        return levels


def _ends(values: np.ndarray, end: int) -> np.ndarray:
    """Return the two smallest (end 0) or largest (end −1) values in ascending order, or all if there are fewer."""
    if values.size <= 2:
        return np.sort(values)
    return np.sort(np.partition(values, 1)[:2] if end == 0 else np.partition(values, values.size - 2)[-2:])


def _keys(values: np.ndarray) -> np.ndarray:
    """Return 32-bit integers in the order of finite float32 values."""
    bits = values.view(np.uint32)
    return (bits ^ np.where(bits >> 31, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))).astype(np.int64)


def _value(key: int) -> np.float32:
    """Return the float32 value of a key."""
    bits = key ^ (0x80000000 if key >> 31 else 0xFFFFFFFF)
    return np.array([bits], np.uint32).view(np.float32)[0]


def _chunk_size(shape: Sequence[int], chunks: Sequence[int]) -> list[int]:
    """Return the size of boxes of whole chunks along the last axes, with at most `PASS_VOXELS` voxels if possible."""
    size = list(shape)
    for axis, chunk in enumerate(chunks):
        if math.prod(size) > PASS_VOXELS:
            size[axis] = min(chunk, shape[axis])
    return size
