"""The grids of a scan whose network was trained by nnU-Net: as stored, cropped, and resampled.

nnU-Net takes the axes of an array as they are stored and in reverse order, crops the scan to the box of its voxels that
are not zero, and resamples that box to a number of voxels that follows from the ratio of the spacings. Positions are
those of equal parts of the box, not of millimetres.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from nibabel.orientations import io_orientation

from medseg.plan import Plan
from medseg.transforms.restore.grid_map import CentredAxisMap, GridMap
from medseg.volumes import Grid

# nnU-Net gives a 2D image this thickness, in units of its larger pixel size.
THICKNESS_OF_IMAGES = 999.0


@dataclass(frozen=True)
class ResamplingStep:
    """Describe how an image or logits are resampled; see `medseg.plan.resampling_rules`.

    Args:
        method: "spline", "torch" or "none".
        order: order of the spline along axes that are resampled together.
        order_z: order along a coarse axis that is resampled by itself.
        separate_z: whether a coarse axis is resampled by itself; None decides by the spacings.
        threshold: ratio of the largest to the smallest spacing above which None decides for it.
    """

    method: Literal["spline", "torch", "none"]
    order: int
    order_z: int
    separate_z: bool | None
    threshold: float

    def coarse_axis(self, current: Sequence[float], new: Sequence[float]) -> int | None:
        """Return the axis that is resampled by itself, or None.

        This is `determine_do_sep_z_and_axis` of nnU-Net 2: the coarsest axis of the current spacing, or else of the new
        one, if it is unique.

        Args:
            current: spacing of the three axes before resampling.
            new: after it.
        """
        if self.separate_z is False:
            return None
        candidates = [current] if self.separate_z else [current, new]
        for spacing in candidates:
            if self.separate_z or max(spacing) / min(spacing) > self.threshold:
                coarsest = [axis for axis, size in enumerate(spacing) if max(spacing) / size == 1]
                return coarsest[0] if len(coarsest) == 1 else None
        return None


def image_step(plan: Plan) -> ResamplingStep:
    """Return how a plan resamples images."""
    return ResamplingStep(**_resampling(plan)["image"])


def logits_step(plan: Plan) -> ResamplingStep:
    """Return how a plan resamples logits."""
    return ResamplingStep(**_resampling(plan)["logits"])


@dataclass(frozen=True, eq=False)
class ExactGrid:
    """Relate the array of a file, its box of voxels that are not zero, and the model grid.

    Args:
        flipped: axes of the file's array that are reversed first.
        order: axis of the file's array that runs along each axis of the model.
        box: the part of the scan that the network sees, along the model's axes.
        shape: the scan's shape along the model's axes.
        spacing: the scan's spacing along the model's axes, in mm.
        model_shape: shape of the model grid in voxels.
        model_spacing: its spacing in mm.
        is_flat: True for a 2D image, whose model grid has a first axis of one voxel.
    """

    flipped: tuple[int, ...]
    order: tuple[int, ...]
    box: tuple[slice, ...]
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    model_shape: tuple[int, ...]
    model_spacing: tuple[float, ...]
    is_flat: bool

    @property
    def box_shape(self) -> tuple[int, ...]:
        """Shape of the box in voxels of the scan."""
        return tuple(part.stop - part.start for part in self.box)

    def oriented(self, array: Any) -> Any:
        """Return a view of a file's array with the model's axes."""
        return np.flip(array[..., None] if self.is_flat else array, self.flipped).transpose(self.order)

    def as_stored(self, array: np.ndarray) -> np.ndarray:
        """Return a view of an array with the model's axes as it is stored in the file; the inverse of `oriented`."""
        stored = np.flip(array.transpose(np.argsort(self.order)), self.flipped)
        return stored[..., 0] if self.is_flat else stored

    def in_whole_scan(self, values: np.ndarray, outside: float) -> np.ndarray:
        """Put values on the voxels of the box into the whole scan, in the file's axis order.

        Args:
            values: (*box_shape).
            outside: value of the voxels that are not in the box.
        """
        whole = np.full(self.shape, outside, dtype=values.dtype)
        whole[self.box] = values
        return np.ascontiguousarray(self.as_stored(whole))

    def logits_map(self, step: ResamplingStep) -> GridMap:
        """Return where the voxels of the box lie on the model grid.

        Args:
            step: how logits are resampled.
        """
        coarse = step.coarse_axis(self.model_spacing, self.spacing)
        axes = []
        for axis, (model, native) in enumerate(zip(self.model_shape, self.box_shape, strict=True)):
            order = step.order_z if axis == coarse else step.order
            axes.append(CentredAxisMap.between(axis, model, native, is_nearest=order == 0))
        return GridMap(tuple(axes))

    def model_affine(self, affine: np.ndarray) -> np.ndarray:
        """Return the affine of the model grid: voxel index to mm.

        Args:
            affine: (4, 4) of the file's array.
        """
        file_shape = [self.shape[m] for m in np.argsort(self.order)]
        to_file = np.zeros((4, 4))
        to_file[3, 3] = 1
        for model_axis, file_axis in enumerate(self.order):
            scale = self.box_shape[model_axis] / self.model_shape[model_axis]
            offset = 0.5 * scale - 0.5 + self.box[model_axis].start
            if file_axis in self.flipped:
                scale, offset = -scale, file_shape[file_axis] - 1 - offset
            to_file[file_axis, model_axis], to_file[file_axis, 3] = scale, offset
        return affine @ to_file


def exact_grid(native: Grid, plan: Plan, box: Sequence[slice] | None = None) -> ExactGrid:
    """Return the grids of a scan.

    Args:
        native: grid of the scan's file; of a 2D image, too.
        plan: with `resampling`.
        box: along the model's axes; None takes the whole scan.
    """
    rules, is_flat = _resampling(plan), native.spatial_dims == 2
    # Spacings are stored in float32. Those of an affine differ in the last digits, which must not decide a rounding.
    file_spacing = [float(np.float32(size)) for size in native.spacing]
    file_shape = [*native.shape]
    if is_flat:
        file_spacing.append(THICKNESS_OF_IMAGES * max(file_spacing))
        file_shape.append(1)
    axis_of_patient, flipped = list(range(3)), tuple[int, ...]()
    if rules["axes"] == "RAS" and not is_flat:
        found = io_orientation(native.affine)
        axis_of_patient = [int(np.flatnonzero(found[:, 0] == axis)[0]) for axis in range(3)]
        flipped = tuple(axis for axis in range(3) if found[axis, 1] < 0)
    order = tuple(axis_of_patient[2 - int(axis)] for axis in rules["transpose"])
    shape, spacing = tuple(file_shape[axis] for axis in order), tuple(file_spacing[axis] for axis in order)
    parts = tuple(slice(0, size) for size in shape) if box is None else tuple(box)
    target = spacing
    if plan.spacing is not None and image_step(plan).method != "none":
        # A 2D network keeps the distance of the slices.
        target = tuple(float(size) for size in plan.spacing)
        target = target if len(target) == 3 else (spacing[0], *target)
    sizes = [part.stop - part.start for part in parts]
    model = tuple(max(1, round(have / want * size)) for have, want, size in zip(spacing, target, sizes, strict=True))
    return ExactGrid(flipped, order, parts, shape, spacing, model, target, is_flat)


def _resampling(plan: Plan) -> dict[str, Any]:
    if plan.resampling is None:
        raise ValueError(f"{plan.source}: the plan states no resampling of another program")
    return dict(plan.resampling)
