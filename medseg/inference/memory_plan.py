"""Fit one prediction into an amount of memory, or refuse it before the work starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from math import prod

import numpy as np
import torch
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from medseg.inference.backend import Backend
from medseg.inference.forward_memory import forward_bytes
from medseg.inference.memory import MemoryEstimate, require, resident_bytes, return_freed_memory
from medseg.inference.merge_memory import (
    F32,
    block_bytes,
    monai_preprocess_bytes,
    preprocess_bytes,
    restore_bytes,
)
from medseg.inference.scan import Scan
from medseg.inference.streaming import Window
from medseg.plan import Plan
from medseg.transforms.grid_map import SNAP_VOXELS
from medseg.transforms.label_decision import LabelDecision
from medseg.volumes import Grid

# How much thinner than usual the slabs restored at once may become, in halvings.
SLAB_SHIFTS = (0, 2, 4, 6)


@dataclass(frozen=True)
class Workload:
    """What a predictor does to every scan, as far as memory is concerned.

    Args:
        plan: channels, orientation and spacing.
        backend: what is blended, and where it is computed.
        predict: the backend with everything around it, as tiles are given to it.
        decision: how many logits a voxel, and the labels' type.
        observer_bytes: bytes a native voxel that are kept beside the labels.
    """

    plan: Plan
    backend: Backend
    predict: Callable[[torch.Tensor], torch.Tensor]
    decision: LabelDecision
    observer_bytes: int = 0

    def estimate(self, scan: Scan, window: Window, network_bytes: int | None = None) -> MemoryEstimate:
        """Bytes that one prediction takes with that window.

        The model grid's shape follows from the spacings; the pass through the network is measured without storage.

        Args:
            scan: as read.
            window: tiles and blending.
            network_bytes: of one pass over a batch, where it is known already.
        """
        # First, because it loads what stays resident.
        network = self.network_bytes(window.batch_size) if network_bytes is None else network_bytes
        native = scan.reference.grid
        native_shape = tuple(native.shape[axis] for axis in axes_in(native, self.plan.orientation))
        model_shape = model_shape_of(native, self.plan.orientation, self.plan.spacing)
        channels, classes = self.plan.in_channels, self.decision.num_channels
        grid = window.over(model_shape)
        head = self.backend.head_weight
        num_values = classes if head is None else head.shape[1]
        halo = 0 if model_shape == native_shape else 1 if window.interpolation == "linear" else 3
        is_together = bool(self.observer_bytes) or head is not None
        kept, restoring = restore_bytes(grid, native_shape, num_values, classes, halo, window.slab_values, is_together)
        if is_sheared(native):
            preprocess = monai_preprocess_bytes(native_shape, model_shape, channels)
            kept += F32 * classes * prod(model_shape)
        else:
            percentiles = any(entry["scheme"] == "percentile" for entry in self.plan.normalization)
            preprocess = preprocess_bytes(native_shape, model_shape, channels, percentiles)
        tile = F32 * window.batch_size * prod(window.tile)
        image = F32 * channels * prod(model_shape) + (2 if window.is_pipelined else 1) * channels * tile
        labels = (self.decision.dtype.itemsize + self.observer_bytes) * prod(native_shape)
        return MemoryEstimate(
            resident=resident_bytes(),
            preprocess=preprocess,
            held=labels + kept + image + block_bytes(grid, num_values, window.carried),
            blending=num_values * tile + restoring,
            network=network,
            is_pipelined=window.is_pipelined,
        )  # fmt: skip

    def network_bytes(self, batch_size: int) -> int:
        """Bytes that one pass over a batch of tiles takes in this memory."""
        if self.backend.device.type != "cpu":
            return 0
        return forward_bytes(self.predict, (batch_size, self.plan.in_channels, *self.plan.tile))

    def fit(self, scan: Scan, window: Window, limit: int) -> Window:
        """The fastest window that keeps the limit.

        What is given up, in this order: the thickness of the slabs that are restored at once, the size of a batch,
        doing both while the network runs, and last the precision in which unfinished sums wait (labels may then differ
        at near ties).

        Raises:
            MemoryLimitError: none does; the message says how much the smallest needs.
        """
        return_freed_memory()
        network = cache(self.network_bytes)
        estimates = []
        for candidate in _candidates(window):
            estimate = self.estimate(scan, candidate, network(candidate.batch_size))
            if estimate.total <= limit:
                return candidate
            estimates.append(estimate)
        require(min(estimates, key=lambda estimate: estimate.total), limit, scan.name)
        raise AssertionError("the smallest estimate is above the limit here")


def _candidates(window: Window) -> Iterator[Window]:
    """Windows from the fastest to the smallest."""
    batches = [window.batch_size]
    while batches[-1] > 1:
        batches.append(batches[-1] // 2)
    for carried in dict.fromkeys((window.carried, "fp16")):
        for is_pipelined in dict.fromkeys((window.is_pipelined, False)):
            for batch_size, shift in product(batches, SLAB_SHIFTS):
                yield replace(
                    window, carried=carried, is_pipelined=is_pipelined, batch_size=batch_size,
                    slab_values=window.slab_values >> shift,
                )  # fmt: skip


def is_sheared(native: Grid) -> bool:
    """Whether a scan's axes are not perpendicular (gantry tilt), so that preprocessing goes MONAI's way."""
    columns = native.affine[: native.spatial_dims, : native.spatial_dims] / np.asarray(native.spacing)
    reach = max(native.shape) * (columns.T @ columns - np.eye(native.spatial_dims))
    return bool(np.abs(reach).max() > SNAP_VOXELS)


def model_shape_of(native: Grid, orientation: str, spacing: Sequence[float] | None) -> tuple[int, ...]:
    """Shape after Orientation and Spacing: (n − 1) · native / model + 1 voxels an axis, rounded.

    Args:
        native: the scan's grid.
        orientation: of the model's axes, as "RAS".
        spacing: of the model's axes in mm; None keeps the scan's.
    """
    order = axes_in(native, orientation)
    shape = tuple(native.shape[axis] for axis in order)
    if spacing is None:
        return shape
    native_spacing = [native.spacing[axis] for axis in order]
    return tuple(round((n - 1) * a / b + 1) for n, a, b in zip(shape, native_spacing, spacing, strict=True))


def axes_in(native: Grid, orientation: str) -> list[int]:
    """The file's axis that becomes each axis of an orientation."""
    rows = [*range(native.spatial_dims), 3]
    found = io_orientation(native.affine[np.ix_(rows, rows)])
    return [int(axis) for axis in np.argsort(ornt_transform(found, axcodes2ornt(orientation))[:, 0])]
