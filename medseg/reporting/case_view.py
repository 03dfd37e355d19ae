"""One case cut and thinned to what a page can hold: image, reference and prediction as bytes on one small grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import ndimage

from medseg.evaluation.boxes import Box, bounding_box, union
from medseg.reporting.grey_levels import GreyLevels, grey_levels
from medseg.reporting.panels import Panel, PatientFrame
from medseg.volumes import Grid

MARGIN_MM = 20.0
MAX_VOXELS = 2_500_000
# What is cut out of a huge scan is picked down to this many voxels before anything is computed from it.
_PICKED_VOXELS = 8 * MAX_VOXELS
# One byte a voxel: background and 255 values.
MAX_VALUES = 255


@dataclass(frozen=True, eq=False)
class CaseView:
    """What is shown of one case, along the page's axes (x, y, z: right, anterior, superior where a patient is known).

    Args:
        reference, prediction: uint8; 0 is background, n the n-th of ``values``.
        image: uint8 levels of ``grey``, or None.
        grey: what the levels mean, or None.
        values: label values in the order of their bytes.
        affine: 4×4, index to mm (RAS+).
        panels: the planes to show.
        tilt_degrees: how oblique the grid is.
        steps: how many of the file's voxels one shown voxel stands for along each axis.
        notes: what was cropped or left out.
    """

    reference: np.ndarray
    prediction: np.ndarray
    image: np.ndarray | None
    grey: GreyLevels | None
    values: tuple[int, ...]
    affine: np.ndarray
    panels: tuple[Panel, ...]
    tilt_degrees: float = 0.0
    steps: tuple[int, ...] = (1, 1, 1)
    notes: tuple[str, ...] = field(default=())

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm."""
        x, y, z = (float(step) for step in np.linalg.norm(self.affine[:3, :3], axis=0))
        return x, y, z

    def thinned(self, max_voxels: int) -> CaseView:
        """This view with at most so many voxels: whole steps along the finest axes, image averaged, labels picked.

        The labels of a block are those of its middle voxel, so that no label appears that was not there.
        """
        steps = thinning_steps(self.reference.shape, self.spacing, max_voxels)
        if max(steps) == 1:
            return self
        middle = tuple(slice((step - 1) // 2, None, step) for step in steps)
        reference, prediction = self.reference[middle], self.prediction[middle]
        image = None if self.image is None else _block_means(self.image, steps, reference.shape)
        affine = self.affine.copy()
        affine[:3, 3] += self.affine[:3, :3] @ [(step - 1) // 2 for step in steps]
        affine[:3, :3] *= steps
        taken = tuple(old * new for old, new in zip(self.steps, steps, strict=True))
        return replace(self, reference=reference, prediction=prediction, image=image, affine=affine, steps=taken)

    @property
    def remarks(self) -> tuple[str, ...]:
        """The notes, and how far the view is thinned."""
        if max(self.steps) == 1:
            return self.notes
        steps = shape_text(self.steps)
        note = f"shown at every {steps}th voxel ({shape_text(self.reference.shape)}); the numbers are of all voxels"
        return (*self.notes, note)


def case_view(
    prediction: np.ndarray,
    reference: np.ndarray,
    grid: Grid,
    image: np.ndarray | None,
    *,
    modality: str | None = None,
    has_patient: bool = True,
    known: Sequence[int] | None = None,
) -> CaseView:
    """Crop a case to both masks with 20 mm around them, and turn it to the page's axes.

    Args:
        prediction, reference: integer label maps of the grid's shape.
        grid: of all three.
        image: of the same shape, or None.
        modality: of the image; None looks at its values.
        has_patient: whether the grid lies in a patient.
        known: the label values to show; None shows all.

    Returns:
        The view at full resolution. Without any label the whole image is kept.
    """
    frame = PatientFrame(grid, has_patient)
    notes: list[str] = []
    box = _box_with_margin(prediction, reference, grid)
    if any(side.stop - side.start < size for side, size in zip(box, grid.shape, strict=True)):
        cut = shape_text(tuple(side.stop - side.start for side in box))
        notes.append(f"cropped from {shape_text(grid.shape)} to {cut} voxels: both masks and {MARGIN_MM:g} mm around")
    values = tuple(known) if known is not None else _values(reference[box], prediction[box])
    if len(values) > MAX_VALUES:
        notes.append(f"shows {MAX_VALUES} of {len(values)} label values")
        values = values[:MAX_VALUES]
    grey = grey_levels(image, modality) if image is not None else None
    if grey is not None and grey.reason:
        notes.append(grey.reason)
    lengths = tuple(side.stop - side.start for side in box)
    picks = thinning_steps(lengths, grid.spacing, _PICKED_VOXELS)
    box = tuple(slice(side.start, side.stop, pick) for side, pick in zip(box, picks, strict=True))
    start = np.diag([*picks, *[1] * (4 - len(picks))]).astype(float)
    start[: grid.spatial_dims, 3] = [side.start for side in box]
    shape = tuple(-(-length // pick) for length, pick in zip(lengths, picks, strict=True))
    cropped = PatientFrame(Grid(shape, grid.affine @ start), has_patient)
    reference_part, prediction_part = reference[box], prediction[box]
    if frame.tilt_degrees:
        notes.append(
            f"oblique by {frame.tilt_degrees:.1f}°: planes follow the scan's own axes, letters are the nearest"
        )
    return CaseView(
        reference=np.ascontiguousarray(cropped.turned(as_bytes(reference_part, values))),
        prediction=np.ascontiguousarray(cropped.turned(as_bytes(prediction_part, values))),
        image=None if image is None or grey is None else np.ascontiguousarray(cropped.turned(grey.encode(image[box]))),
        grey=grey,
        values=values,
        affine=cropped.affine,
        panels=frame.panels,
        tilt_degrees=frame.tilt_degrees,
        steps=frame.turned_steps(picks),
        notes=tuple(notes),
    )


def as_bytes(label_map: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Each voxel as the position of its value, counted from 1; 0 for background and every other value."""
    result = np.zeros(label_map.shape, dtype=np.uint8)
    for position, value in enumerate(values[:MAX_VALUES], start=1):
        result[label_map == value] = position
    return result


def thinning_steps(shape: Sequence[int], spacing: Sequence[float], max_voxels: int) -> tuple[int, ...]:
    """Steps along each axis that leave at most ``max_voxels``, always taken along the axis that is finest so far."""
    steps = [1] * len(shape)

    def left() -> int:
        return math.prod(-(-size // step) for size, step in zip(shape, steps, strict=True))

    while left() > max(max_voxels, 1):
        open_axes = [axis for axis in range(len(shape)) if steps[axis] < shape[axis]]
        steps[min(open_axes, key=lambda axis: spacing[axis] * steps[axis])] += 1
    return tuple(steps)


def _block_means(image: np.ndarray, steps: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Mean of each block of steps; the blocks at the end repeat the last voxel."""
    smooth = image
    for axis, step in enumerate(steps):
        if step > 1:
            # a window of even size reaches one further to the left unless it is moved
            smooth = ndimage.uniform_filter1d(smooth, step, axis=axis, mode="nearest", origin=step % 2 - 1)
    middle = tuple(slice((step - 1) // 2, None, step) for step in steps)
    return smooth[middle][tuple(slice(0, size) for size in shape)]


def _box_with_margin(prediction: np.ndarray, reference: np.ndarray, grid: Grid) -> Box:
    tight = union(grid.spatial_dims, (bounding_box(labels) for labels in (prediction, reference)))
    box = []
    for side, size, step in zip(tight, grid.shape, grid.spacing, strict=True):
        margin = math.ceil(MARGIN_MM / step)
        is_empty = side.stop == side.start
        box.append(slice(0, size) if is_empty else slice(max(side.start - margin, 0), min(side.stop + margin, size)))
    return tuple(box)


def _values(reference: np.ndarray, prediction: np.ndarray) -> tuple[int, ...]:
    found = np.union1d(np.unique(reference), np.unique(prediction))
    return tuple(int(value) for value in found if value != 0)


def shape_text(shape: Sequence[int]) -> str:
    return "×".join(str(size) for size in shape)
