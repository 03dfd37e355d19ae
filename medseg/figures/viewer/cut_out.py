"""From label maps and images of a file's own size to a view: cropped, turned to the page's axes, as bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from medseg.figures.grey_levels import grey_levels
from medseg.figures.panels import PatientFrame
from medseg.figures.viewer.view import Channel, View, shape_text, thinning_steps
from medseg.volumes import Grid

MARGIN_MM = 20.0
MAX_VOXELS = 2_500_000
# What is cut out of a huge scan is picked down to this many voxels before anything is computed from it.
_PICKED_VOXELS = 8 * MAX_VOXELS
# One byte a voxel: background and 255 values.
MAX_VALUES = 255


def cut_out(
    prediction: np.ndarray,
    reference: np.ndarray | None,
    grid: Grid,
    images: Iterable[tuple[str, np.ndarray]],
    box: Sequence[slice],
    *,
    modalities: Mapping[str, str] | None = None,
    has_patient: bool = True,
    known: Sequence[int] | None = None,
) -> View:
    """Crop a case to a box with 20 mm around it, and turn it to the page's axes.

    Args:
        prediction, reference: integer label maps of the grid's shape.
        grid: of everything.
        images: name and image of each channel, of the same shape; taken one at a time.
        box: what must be seen; empty slices keep everything.
        modalities: channel name → modality; a channel without looks at its values.
        has_patient: whether the grid lies in a patient.
        known: the label values to show; None shows all.

    Returns:
        The view at full resolution, or at most 20 million voxels.
    """
    frame = PatientFrame(grid, has_patient)
    notes: list[str] = []
    box = _with_margin(box, grid)
    lengths = tuple(side.stop - side.start for side in box)
    if any(length < size for length, size in zip(lengths, grid.shape, strict=True)):
        masks = "both masks" if reference is not None else "the labels"
        cut = f"cropped from {shape_text(grid.shape)} to {shape_text(lengths)} voxels"
        notes.append(f"{cut}: {masks} and {MARGIN_MM:g} mm around")
    maps = [labels for labels in (prediction, reference) if labels is not None]
    values = tuple(known) if known is not None else _values([labels[tuple(box)] for labels in maps])
    if len(values) > MAX_VALUES:
        notes.append(f"shows {MAX_VALUES} of {len(values)} label values")
        values = values[:MAX_VALUES]
    picks = thinning_steps(lengths, grid.spacing, _PICKED_VOXELS)
    picked = tuple(slice(side.start, side.stop, pick) for side, pick in zip(box, picks, strict=True))
    cropped = PatientFrame(_picked_grid(grid, picked), has_patient)
    channels = []
    for name, image in images:
        grey = grey_levels(image, (modalities or {}).get(name))
        if grey.reason:
            notes.append(f"{name}: {grey.reason}" if name else grey.reason)
        levels = np.ascontiguousarray(cropped.turned(grey.encode(image[picked])))
        channels.append(Channel(levels, grey, name))
    if frame.tilt_degrees:
        tilt = f"oblique by {frame.tilt_degrees:.1f}°"
        notes.append(f"{tilt}: planes follow the scan's own axes, letters are the nearest")
    return View(
        prediction=np.ascontiguousarray(cropped.turned(as_bytes(prediction[picked], values))),
        reference=None
        if reference is None
        else np.ascontiguousarray(cropped.turned(as_bytes(reference[picked], values))),
        channels=tuple(channels),
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


def _with_margin(box: Sequence[slice], grid: Grid) -> tuple[slice, ...]:
    wider = []
    for side, size, step in zip(box, grid.shape, grid.spacing, strict=True):
        margin = math.ceil(MARGIN_MM / step)
        is_empty = side.stop == side.start
        wider.append(slice(0, size) if is_empty else slice(max(side.start - margin, 0), min(side.stop + margin, size)))
    return tuple(wider)


def _picked_grid(grid: Grid, picked: Sequence[slice]) -> Grid:
    """The grid of every n-th voxel of a box."""
    steps = [side.step for side in picked]
    start = np.diag([*steps, *[1] * (4 - len(steps))]).astype(float)
    start[: len(steps), 3] = [side.start for side in picked]
    shape = tuple(-(-(side.stop - side.start) // side.step) for side in picked)
    return Grid(shape, grid.affine @ start)


def _values(maps: Sequence[np.ndarray]) -> tuple[int, ...]:
    found = np.unique(np.concatenate([np.unique(labels) for labels in maps]))
    return tuple(int(value) for value in found if value != 0)
