"""Fit one prediction into an amount of memory, or refuse it before the work starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from math import prod

import torch

from medseg.inference.backend import Backend
from medseg.inference.forward_memory import forward_bytes
from medseg.inference.memory import MemoryEstimate, require, resident_bytes, return_freed_memory
from medseg.inference.merge_memory import (
    F32,
    block_bytes,
    monai_preprocess_bytes,
    preprocess_bytes,
    restore_bytes,
    sheared_restore_bytes,
)
from medseg.inference.model_input import ModelGrid, exact_map, model_grid
from medseg.inference.scan import Scan
from medseg.inference.streaming import Window
from medseg.inference.tiles import TileGrid
from medseg.plan import Plan
from medseg.transforms.grid_map import map_grids
from medseg.transforms.label_decision import LabelDecision
from medseg.transforms.resample import SeparableResampler
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
        kept_slices: further scans of the same shape (slices of a volume) whose results are kept.
    """

    plan: Plan
    backend: Backend
    predict: Callable[[torch.Tensor], torch.Tensor]
    decision: LabelDecision
    observer_bytes: int = 0
    kept_slices: int = 0

    def estimate(self, scan: Scan, window: Window, network_bytes: int | None = None) -> MemoryEstimate:
        """Bytes that one prediction takes with that window.

        The model grid is the one that preprocessing will make; the pass through the network is measured without
        storage. Tiles of air count as if they were predicted: which they are is known once the scan is preprocessed.

        Args:
            scan: as read.
            window: tiles and blending.
            network_bytes: of one pass over a batch, where it is known already.
        """
        # First, because it loads what stays resident.
        network = self.network_bytes(window.batch_size) if network_bytes is None else network_bytes
        native, model = scan.reference.grid, model_grid(scan, self.plan)
        grid, channels = window.over(model.shape), self.plan.in_channels
        kept, restoring = self._restoring(native, model, grid, window)
        tile = F32 * window.batch_size * prod(window.tile)
        image = F32 * channels * prod(model.shape) + (2 if window.is_pipelined else 1) * channels * tile
        results = (1 + self.kept_slices) * (self.decision.dtype.itemsize + self.observer_bytes) * prod(native.shape)
        return MemoryEstimate(
            resident=resident_bytes(),
            preprocess=self._preprocessing(native, model),
            held=results + kept + image + block_bytes(grid, self.num_values, window.carried),
            blending=self.num_values * tile + restoring,
            network=network,
            is_pipelined=window.is_pipelined,
        )  # fmt: skip

    @property
    def num_values(self) -> int:
        """Channels that are blended: features where the head is applied later, else logits."""
        head = self.backend.head_weight
        return self.decision.num_channels if head is None else head.shape[1]

    def _preprocessing(self, native: Grid, model: ModelGrid) -> int:
        """Bytes at most while the scan is turned into the network's input."""
        channels = self.plan.in_channels
        if map_grids(native.affine, native.shape, model.affine, model.shape) is None:
            return monai_preprocess_bytes(native.shape, model.shape, channels)
        percentiles = any(entry["scheme"] == "percentile" for entry in self.plan.normalization)
        resampler = SeparableResampler(exact_map(native.affine, native.shape, model))
        return preprocess_bytes(resampler, channels, percentiles)

    def _restoring(self, native: Grid, model: ModelGrid, grid: TileGrid, window: Window) -> tuple[int, int]:
        """Bytes kept for restoring while tiles are predicted, and those that one block of it takes."""
        classes, is_observed = self.decision.num_channels, bool(self.observer_bytes)
        back = map_grids(model.affine, model.shape, native.affine, native.shape)
        if back is None:
            one = sheared_restore_bytes(native.spatial_dims, self.num_values, classes, is_observed)
            return F32 * self.num_values * prod(model.shape), one
        halo = 0 if all(axis.is_whole for axis in back.axes) else 1 if window.interpolation == "linear" else 3
        native_shape = [native.shape[axis] for axis in back.native_axis_of]
        has_head = self.backend.head_weight is not None
        return restore_bytes(
            grid, native_shape, self.num_values, classes, halo, window.slab_values, is_observed or has_head, is_observed
        )

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
