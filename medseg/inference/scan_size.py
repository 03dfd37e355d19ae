"""Refuse scans that resampling would turn into far too many voxels, before the work starts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from math import inf, prod

from medseg.errors import GeometryError, MemoryLimitError
from medseg.machine import physical_memory
from medseg.plan import Plan
from medseg.volumes import Grid

# A model grid is doubted if it has more voxels than both of these: per voxel of the scan, and in all. The latter are
# 406 voxels along each axis. A head at 1 mm has a quarter of that, so one of 4 mm (64 times fewer voxels) is accepted.
MAX_GROWTH, USUAL_VOXELS = 50, 1 << 26
# Fewer voxels of the model grid per voxel of the scan than this are unusual.
MIN_GROWTH = 1e-3


def check_growth(name: str, grid: Grid, plan: Plan, force: bool = False) -> None:
    """Refuse a scan whose voxels are so large that its model grid would be huge; a wrong unit is the usual reason.

    Args:
        name: the scan's file.
        grid: of the scan.
        plan: orientation and spacing of the model grid; without a spacing nothing is resampled.
        force: accept any number of voxels.

    Raises:
        GeometryError: the model grid has more than 2^26 voxels, and more than 50 per voxel of the scan.
    """
    if not force:
        way_out = ", or predict it all the same with medseg predict --force"
        refuse_growth(name, grid, growth(grid, plan), plan.spacing or (), way_out)


def check_memory(name: str, grid: Grid, plan: Plan) -> None:
    """Refuse a scan that is resampled to more voxels than the memory of the machine can hold.

    Raises:
        MemoryLimitError: the model grid does not fit.
    """
    factor = growth(grid, plan)
    needed, memory = 4 * plan.in_channels * factor * prod(grid.shape), physical_memory()
    if factor > 1 and needed > memory:
        raise MemoryLimitError(
            f"{name}: {_resampling(grid, factor, plan.spacing or ())} and take {needed / 1e9:,.0f} GB; the machine has "
            f"{memory / 1e9:,.0f} GB; correct the voxel size in the header, or resample the scan"
        )


def refuse_growth(name: str, grid: Grid, factor: float, spacing: Sequence[float], way_out: str = "") -> None:
    """Refuse a resampling that gives more than 2^26 voxels, and more than 50 per voxel of the scan.

    Args:
        name: the scan's file.
        grid: of the scan.
        factor: voxels after the resampling per voxel of the scan.
        spacing: after the resampling, for the message.
        way_out: what else a user can do, for the message.

    Raises:
        GeometryError: there are too many voxels.
    """
    voxels = factor * prod(grid.shape)
    if factor > MAX_GROWTH and voxels > USUAL_VOXELS:
        raise GeometryError(
            f"{name}: {_resampling(grid, factor, spacing)}, {voxels:.3g} in all; correct the voxel size in the header, "
            f"or resample the scan{way_out}"
        )


def growth(native: Grid, plan: Plan) -> float:
    """Return how many voxels of the model grid there are per voxel of a scan, up to the rounding of sizes."""
    if plan.spacing is None:
        return 1.0
    spacing = {"LRPAIS".index(letter) // 2: size for letter, size in zip(plan.orientation, plan.spacing, strict=True)}
    axes = zip(native.shape, native.spacing, native.orientation, strict=True)
    return growth_along(native.shape, [size / spacing["LRPAIS".index(letter) // 2] for _, size, letter in axes])


def growth_along(shape: Sequence[int], ratios: Sequence[float]) -> float:
    """Return the voxels of a grid per voxel of another one, given the ratio of their spacings along each axis."""
    factor = 1.0
    for n, ratio in zip(shape, ratios, strict=True):
        factor *= ((n - 1) * ratio + 1) / n
    return factor


def warn_of_small_voxels(name: str, grid: Grid, plan: Plan) -> None:
    """Warn if nearly all voxels of a scan are lost on the model grid, because their size is wrong by magnitudes."""
    factor = growth(grid, plan)
    if factor < MIN_GROWTH:
        lost = 1 / factor if factor else inf
        warnings.warn(
            f"{name}: {lost:,.0f} voxels of {_sizes(grid.spacing)} mm become one voxel of "
            f"{_sizes(plan.spacing or ())} mm; check the voxel size and its unit in the header",
            stacklevel=2,
        )


def _resampling(grid: Grid, factor: float, spacing: Sequence[float]) -> str:
    return f"voxels of {_sizes(grid.spacing)} mm would become {factor:.3g} times as many of {_sizes(spacing)} mm"


def _sizes(spacing: Sequence[float]) -> str:
    return "×".join(f"{size:.4g}" for size in spacing)
