"""Exact distances to the nearest and the second-nearest instance, at a cost that does not depend on how many there are.

The squared Euclidean distance transform is separable: one pass an axis, each the minimum of shifted copies plus
`offset**2`. The same passes carry the best *two* (squared distance, label) pairs with distinct labels. Two suffice: at
any voxel a third label is beaten by both others everywhere it could spread from there. Distances beyond `reach` are not
wanted, so shifts stop there.

A pair is one integer, `squared distance << bits | label`, so a minimum compares distance and carries the label. On
isotropic grids (and integer ratios of spacing) the arithmetic is exact; otherwise squares are rounded to fixed point
with 20 bits or more after the point.

The first axis needs no shifts: running maxima of `position << bits | label` hold the last two labels seen. The last
axis is evaluated at the wanted voxels alone, each dropping out once no further offset can improve it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_TILE = 1 << 15  # elements; with the scratch arrays they stay in a second-level cache
_MAX_LABEL_BITS = 24

Keys = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class _Code:
    """How a squared distance and a label share one integer."""

    bits: int
    dtype: type[np.signedinteger[Any]]
    nothing: int  # larger than any reachable key; a power of two
    scale: float  # fixed-point units a squared distance

    @property
    def label_mask(self) -> int:
        return (1 << self.bits) - 1

    def costs(self, step: float, reach: float, size: int) -> Keys:
        """Keys of the squared distances of offsets 0, 1, … along an axis, `nothing` beyond reach; length `size + 1`."""
        offsets = np.arange(size + 1) * step
        units = np.where(offsets <= reach, np.rint(offsets**2 * self.scale), 0).astype(np.int64) << self.bits
        return np.where(offsets <= reach, units, self.nothing).astype(self.dtype)

    def distances(self, keys: Keys) -> np.ndarray:
        squared = (keys >> self.bits) / self.scale
        distances: np.ndarray = np.where(keys >= self.nothing, np.inf, np.sqrt(squared)).astype(np.float32)
        return distances


def two_nearest_distances(
    instances: np.ndarray, where: np.ndarray, sampling: Sequence[float] | np.ndarray, reach: float
) -> tuple[np.ndarray, np.ndarray]:
    """Distance from chosen voxels to the nearest and the second-nearest instance, voxel centre to voxel centre.

    Equal to the two smallest of `scipy.ndimage.distance_transform_edt(instances != k, sampling)` over all k.

    Args:
        instances: non-negative integers of any dimension, 0 is no instance.
        where: boolean, same shape: voxels to measure at.
        sampling: distance between neighbours along each axis, > 0.
        reach: distances up to this one are exact. Where d1 + d2 > reach either may be larger than true or inf.

    Returns:
        `(first, second)`, float32, one value a true voxel of `where` in C order; inf where there is no such instance.
        Without any instance both are all inf.
    """
    shape, ndim = instances.shape, instances.ndim
    smallest = min(sampling)
    steps = np.asarray(sampling, dtype=float) / smallest
    diagonal = float(np.linalg.norm(np.array(shape) * steps))
    radius = min(reach / smallest, 2 * diagonal)  # d1 + d2 never exceeds it
    labels, num_bits = _compact(instances)
    code = _choose_code(steps, radius, num_bits, max(shape, default=1), ndim)
    labels = labels.astype(code.dtype, copy=False)
    order = np.argsort(steps, kind="stable")  # the axis with most voxels in reach goes first: it needs no shifts
    axes = [*order[:1], *order[:0:-1]]  # … and the next-most goes last, where only few voxels are left
    costs = {int(axis): code.costs(steps[axis], radius, shape[axis]) for axis in axes}

    first, second = _scan(labels, int(axes[0]), costs[int(axes[0])], code)
    for axis in axes[1:-1]:
        first, second = _shift(first, second, int(axis), costs[int(axis)], code)
    if ndim == 1:
        return code.distances(first[where]) * smallest, code.distances(second[where]) * smallest
    first, second = _shift_at(where, first, second, int(axes[-1]), costs[int(axes[-1])], radius, code)
    return code.distances(first) * smallest, code.distances(second) * smallest


def _compact(instances: np.ndarray) -> tuple[np.ndarray, int]:
    largest = int(instances.max(initial=0))
    if largest >= 1 << _MAX_LABEL_BITS:
        values, inverse = np.unique(instances, return_inverse=True)
        instances = inverse.reshape(instances.shape) + int(values[0] != 0)
        largest = int(instances.max(initial=0))
    return instances, max(1, largest.bit_length())


def _choose_code(steps: np.ndarray, radius: float, bits: int, longest: int, ndim: int) -> _Code:
    largest_sum = ndim * (radius + 1) ** 2
    exact = bool(np.all(steps**2 == np.rint(steps**2)))
    if exact and (largest_sum + 1) * 2**bits < 2**30 and (longest + 1) * 2**bits < 2**31:
        return _Code(bits, np.int32, 1 << 30, 1.0)
    scale = 1.0 if exact else 2.0 ** min(40, int(np.floor(60 - bits - np.log2(largest_sum))))
    return _Code(bits, np.int64, 1 << 61, scale)


def _merge(first: Keys, second: Keys, other_first: Keys, other_second: Keys | None, code: _Code, scratch: Keys) -> None:
    """Best two distinct labels of two sorted pairs, into `first` and `second`; `scratch` is overwritten.

    The loser of the two firsts competes for second place unless it carries the winner's label. A second that carries
    the winner's label is never smaller than that loser or its own first, so it needs no such check.
    """
    if other_second is not None:
        np.minimum(second, other_second, out=second)
    np.bitwise_xor(first, other_first, out=scratch)
    np.bitwise_and(scratch, code.label_mask, out=scratch)
    np.subtract(scratch, 1, out=scratch)  # all ones where the labels are equal, else small
    np.bitwise_and(scratch, code.nothing, out=scratch)
    np.bitwise_or(scratch, np.maximum(first, other_first), out=scratch)
    np.minimum(first, other_first, out=first)
    np.minimum(second, scratch, out=second)


def _scan(labels: Keys, axis: int, costs: Keys, code: _Code) -> tuple[Keys, Keys]:
    """The first pass, from the instances themselves: the last two labels seen from either side along the axis."""
    moved = np.moveaxis(labels, axis, 0)
    lines = moved.reshape(len(moved), -1)
    out_first, out_second = np.empty_like(lines), np.empty_like(lines)
    for columns in _tiles(lines):
        tile = np.ascontiguousarray(lines[:, columns])
        first, second = _last_two_seen(tile, costs, code)
        mirrored_first, mirrored_second = _last_two_seen(tile[::-1], costs, code)
        _merge(first, second, mirrored_first[::-1], mirrored_second[::-1], code, np.empty_like(first))
        out_first[:, columns], out_second[:, columns] = first, second
    return np.moveaxis(out_first.reshape(moved.shape), 0, axis), np.moveaxis(out_second.reshape(moved.shape), 0, axis)


def _tiles(lines: Keys) -> Iterator[slice]:
    """Columns of a 2D array, as many at a time as stay in the cache."""
    width = max(1, _TILE // len(lines))
    return (slice(start, start + width) for start in range(0, lines.shape[1], width))


def _last_two_seen(lines: Keys, costs: Keys, code: _Code) -> tuple[Keys, Keys]:
    position = np.arange(1, len(lines) + 1, dtype=code.dtype)[:, None]
    here = (position << code.bits | lines) * (lines > 0)
    last = np.maximum.accumulate(here, axis=0)  # positions grow along the axis, so the maximum is the latest
    before = np.zeros_like(last)
    before[1:] = last[:-1]
    changed = ((here ^ before) & code.label_mask != 0) & (here > 0)
    other = np.maximum.accumulate(before * changed, axis=0)
    return _keys_of_seen(last, position, costs, code), _keys_of_seen(other, position, costs, code)


def _keys_of_seen(seen: Keys, position: Keys, costs: Keys, code: _Code) -> Keys:
    offset = position - (seen >> code.bits)
    np.multiply(offset, seen > 0, out=offset)
    key = np.take(costs, offset, mode="clip")
    key |= seen & code.label_mask
    key |= (seen == 0) * code.dtype(code.nothing)
    return key


def _shift(first: Keys, second: Keys, axis: int, costs: Keys, code: _Code) -> tuple[Keys, Keys]:
    """A middle pass, at every voxel: merge with copies shifted by every offset in reach, a tile of lines at a time."""
    size = first.shape[axis]
    lines_first, lines_second = (np.moveaxis(a, axis, 0).reshape(size, -1) for a in (first, second))
    out_first, out_second = np.empty_like(lines_first), np.empty_like(lines_second)
    num_offsets = int(np.count_nonzero(costs[:size] < code.nothing))
    for columns in _tiles(lines_first):
        from_first, from_second = (np.ascontiguousarray(a[:, columns]) for a in (lines_first, lines_second))
        into_first, into_second = from_first.copy(), from_second.copy()
        moved_first, moved_second, scratch = (np.empty_like(from_first) for _ in range(3))
        for offset in range(1, num_offsets):
            np.add(from_first, costs[offset], out=moved_first)
            np.add(from_second, costs[offset], out=moved_second)
            low, high, free = slice(None, size - offset), slice(offset, None), scratch[: size - offset]
            _merge(into_first[high], into_second[high], moved_first[low], moved_second[low], code, free)
            _merge(into_first[low], into_second[low], moved_first[high], moved_second[high], code, free)
        out_first[:, columns], out_second[:, columns] = into_first, into_second
    shape = np.moveaxis(first, axis, 0).shape
    return np.moveaxis(out_first.reshape(shape), 0, axis), np.moveaxis(out_second.reshape(shape), 0, axis)


def _shift_at(
    where: np.ndarray, first: Keys, second: Keys, axis: int, costs: Keys, radius: float, code: _Code
) -> tuple[Keys, Keys]:
    """The last pass, at chosen voxels: each stops once no further offset can bring its second label closer.

    Nor does a voxel go on whose nearest instance is beyond half the reach, since d1 + d2 >= 2 * d1.
    """
    size = first.shape[axis]
    num_offsets = int(np.count_nonzero(costs[:size] < code.nothing))
    margin = [(0, 0)] * (first.ndim - 1) + [(num_offsets, num_offsets)]
    sources = [
        np.pad(np.moveaxis(a, axis, -1), margin, constant_values=code.nothing).reshape(-1) for a in (first, second)
    ]
    numbered: np.ndarray = np.full(where.shape, -1)
    numbered[where] = np.arange(np.count_nonzero(where))
    numbered = np.moveaxis(numbered, axis, -1).reshape(-1)
    chosen = np.flatnonzero(numbered >= 0)
    number = numbered[chosen]  # place in the result
    address = chosen + (2 * (chosen // size) + 1) * num_offsets  # place in the padded sources
    results = [np.empty(len(chosen), code.dtype) for _ in sources]
    half_reach = (radius / 2) ** 2 * code.scale * 2**code.bits
    for start in range(0, len(chosen), _TILE):
        at, place = address[start : start + _TILE], number[start : start + _TILE]
        into = [np.take(source, at) for source in sources]
        for offset in range(1, num_offsets):
            cost = costs[offset]
            active = into[1] > cost
            if cost > half_reach:
                active &= into[0] <= cost
            if not active.all():
                for result, value in zip(results, into, strict=True):
                    result[place] = value  # final for those that stop, overwritten later for the rest
                at, place, into = at[active], place[active], [value[active] for value in into]
                if not len(at):
                    break
            scratch = np.empty_like(into[0])
            for neighbour in (at + offset, at - offset):
                other_first, other_second = (np.take(source, neighbour) + cost for source in sources)
                _merge(into[0], into[1], other_first, other_second, code, scratch)
        for result, value in zip(results, into, strict=True):
            result[place] = value
    return results[0], results[1]
