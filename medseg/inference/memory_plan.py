"""Fit one prediction into an amount of memory, or refuse it before the work starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from medseg.inference.backend import Backend
from medseg.inference.forward_memory import forward_bytes
from medseg.inference.memory import MemoryEstimate, merge_bytes, preprocess_bytes, require, resident_bytes
from medseg.inference.scan import Scan
from medseg.inference.streaming import Window
from medseg.plan import Plan
from medseg.transforms.label_decision import LabelDecision
from medseg.volumes import Grid


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

    def estimate(self, scan: Scan, window: Window) -> MemoryEstimate:
        """Bytes that one prediction takes with that window.

        The model grid's shape follows from the spacings; the pass through the network is measured without storage.
        """
        native = scan.reference.grid
        native_shape = tuple(native.shape[axis] for axis in axes_in(native, self.plan.orientation))
        model_shape = model_shape_of(native, self.plan.orientation, self.plan.spacing)
        resamples = model_shape != native_shape
        head = self.backend.head_weight
        classes = self.decision.num_channels
        merge = merge_bytes(
            window.over(model_shape), native_shape, self.plan.in_channels, classes if head is None else head.shape[1],
            self.decision.dtype.itemsize, 0 if not resamples else 1 if window.interpolation == "linear" else 3,
            window.batch_size, is_head_apart=bool(self.observer_bytes) or head is not None,
        )  # fmt: skip
        tiles = (window.batch_size, self.plan.in_channels, *window.tile)
        return MemoryEstimate(
            resident=resident_bytes(),
            preprocess=preprocess_bytes(native_shape, model_shape, self.plan.in_channels, resamples),
            merge=merge + self.observer_bytes * prod(native_shape),
            network=forward_bytes(self.predict, tiles) if self.backend.device.type == "cpu" else 0,
        )

    def fit(self, scan: Scan, window: Window, limit: int) -> Window:
        """The window with the largest batch that keeps the limit.

        Raises:
            MemoryLimitError: not even one tile at a time does; the message says how much is needed.
        """
        while True:
            estimate = self.estimate(scan, window)
            if estimate.total <= limit or window.batch_size == 1:
                break
            window = replace(window, batch_size=max(1, window.batch_size // 2))
        require(estimate, limit, scan.name)
        return window


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
