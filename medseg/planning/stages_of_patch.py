"""Choose the stages, strides and kernels of a U-shaped network, and the patch that fits them.

The rules are those of nnU-Net (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z, Sec. "Network architecture"): an
axis is halved as long as it has at least twice the smallest size and voxels less than twice the finest ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

MIN_EDGE = 4  # voxels of the coarsest map along every axis that was halved
MOST_VOXELS = {2: 2048**2, 3: 256**3}  # of the first patch that is tried


@dataclass(frozen=True)
class Topology:
    """Stages of a network for one patch.

    Args:
        strides: step from each stage to the next, one number per axis.
        kernels: convolution kernel of each stage, one number per axis.
    """

    strides: tuple[tuple[int, ...], ...]
    kernels: tuple[tuple[int, ...], ...]

    @property
    def num_stages(self) -> int:
        """Number of resolution levels."""
        return len(self.kernels)

    @property
    def divisors(self) -> tuple[int, ...]:
        """Number by which a patch must be divisible, per axis."""
        return tuple(math.prod(steps) for steps in zip(*self.strides, strict=True)) or (1,) * len(self.kernels[0])


def topology_for(spacing: Sequence[float], patch: Sequence[int], max_stages: int = 100) -> Topology:
    """Choose the stages for a patch.

    An axis takes part in a step if it has at least 2 · 4 voxels and its voxels are less than twice as large as the
    smallest of such axes. A kernel is 1 along an axis until its voxels are within a factor of two of the smallest, then
    3. The last axis that is left is halved only from 12 voxels on.

    Args:
        spacing: voxel size per axis, in any unit.
        patch: size in voxels per axis.
        max_stages: upper limit of the number of stages.
    """
    sizes, steps_mm = [float(n) for n in patch], [float(s) for s in spacing]
    dims = len(sizes)
    kernel = [1] * dims
    strides: list[tuple[int, ...]] = []
    kernels: list[tuple[int, ...]] = []
    while len(strides) + 1 < max_stages:
        large = [axis for axis in range(dims) if sizes[axis] >= 2 * MIN_EDGE]
        if not large:
            break
        finest = min(steps_mm[axis] for axis in large)
        halved = [axis for axis in large if steps_mm[axis] / finest < 2]
        if len(halved) == 1 and sizes[halved[0]] < 3 * MIN_EDGE:
            break
        kernel = [3 if k == 3 or s / min(steps_mm) < 2 else 1 for k, s in zip(kernel, steps_mm, strict=True)]
        strides.append(tuple(2 if axis in halved else 1 for axis in range(dims)))
        kernels.append(tuple(kernel))
        for axis in halved:
            steps_mm[axis] *= 2
            sizes[axis] = math.ceil(sizes[axis] / 2)
    return Topology(tuple(strides), (*kernels, (3,) * dims))


def padded(patch: Sequence[int], divisors: Sequence[int]) -> tuple[int, ...]:
    """Round a patch up to multiples of the divisors."""
    return tuple(math.ceil(size / d) * d for size, d in zip(patch, divisors, strict=True))


def first_patch(spacing: Sequence[float], median_shape: Sequence[float]) -> tuple[int, ...]:
    """Return a large patch that is isotropic in mm, at most as large as the median image along each axis."""
    dims = len(spacing)
    inverse = [1 / s for s in spacing]
    factor = (MOST_VOXELS[dims] / math.prod(inverse)) ** (1 / dims)
    return tuple(max(1, int(min(round(i * factor), n))) for i, n in zip(inverse, median_shape, strict=True))


def shrinking_patches(
    spacing: Sequence[float], median_shape: Sequence[float], max_stages: int = 100
) -> Iterator[tuple[tuple[int, ...], Topology]]:
    """Yield patches with their stages from the largest on, each a little smaller than the one before.

    The axis that is longest relative to the median image is shortened by the smallest step after which every stage is
    still divisible.
    """
    patch = first_patch(spacing, median_shape)
    topology = topology_for(spacing, patch, max_stages)
    patch = padded(patch, topology.divisors)
    seen: set[tuple[int, ...]] = set()
    while patch not in seen and min(patch) > 0:
        seen.add(patch)
        yield patch, topology
        ratios = [size / n for size, n in zip(patch, median_shape, strict=True)]
        # of equal axes the first, which is the last of nnU-Net's: its axes begin with the slices
        axis = max(range(len(patch)), key=lambda a: (ratios[a], -a))
        smaller = list(patch)
        smaller[axis] -= topology.divisors[axis]
        if smaller[axis] < 1:
            return
        # A shorter axis may need fewer stages, which allows a size in between: 224 between 256 and 192.
        step = topology_for(spacing, smaller, max_stages).divisors[axis]
        smaller = list(patch)
        smaller[axis] -= step
        topology = topology_for(spacing, smaller, max_stages)
        patch = padded(smaller, topology.divisors)


def largest_patch(
    spacing: Sequence[float],
    median_shape: Sequence[float],
    fits: Callable[[tuple[int, ...], Topology], bool],
    max_stages: int = 100,
) -> tuple[tuple[int, ...], Topology, bool] | None:
    """Return the first of `shrinking_patches` that fits, its stages, and whether it is smaller than the first patch.

    Args:
        spacing: target voxel size.
        median_shape: of the images at that voxel size.
        fits: whether a patch with its stages can be trained.
        max_stages: upper limit of the number of stages.

    Returns:
        None if not even the smallest patch fits.
    """
    for number, (patch, topology) in enumerate(shrinking_patches(spacing, median_shape, max_stages)):
        if fits(patch, topology):
            return patch, topology, number > 0
    return None
