"""One case cropped and thinned for a page: channels and label maps as bytes on one small grid."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from medseg.figures.grey_levels import GreyLevels, grey_levels
from medseg.figures.planes import Panel, PatientFrame
from medseg.volumes import Grid


@dataclass(frozen=True, eq=False)
class Channel:
    """One channel of an image in 256 grey levels.

    Args:
        levels: uint8 levels of `grey`, (x, y, z).
        grey: image values of the levels.
        name: such as "T2"; empty for a single channel without a known name.
    """

    levels: np.ndarray
    grey: GreyLevels
    name: str = ""


@dataclass(frozen=True, eq=False)
class View:
    """Volumes of one case to show, along the page's axes (x, y, z: right, anterior, superior if a patient is known).

    Args:
        prediction: uint8; 0 is background, n the n-th of `values`.
        reference: the same, or None if there is nothing to compare with.
        channels: channels of the image; empty without an image.
        values: label values in the order of their bytes.
        affine: 4×4, index to mm (RAS+).
        panels: the planes to show.
        tilt_degrees: tilt of an oblique grid.
        steps: number of the file's voxels per shown voxel along each axis.
        notes: remarks on what was cropped or could not be shown.
        left_out: names of channels that were dropped because of their size.
    """

    prediction: np.ndarray
    reference: np.ndarray | None
    channels: tuple[Channel, ...]
    values: tuple[int, ...]
    affine: np.ndarray
    panels: tuple[Panel, ...]
    tilt_degrees: float = 0.0
    steps: tuple[int, ...] = (1, 1, 1)
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm."""
        x, y, z = (float(step) for step in np.linalg.norm(self.affine[:3, :3], axis=0))
        return x, y, z

    @property
    def num_voxels(self) -> int:
        """Number of voxels of one volume."""
        return self.prediction.size

    def nearest_index(self, place_mm: np.ndarray) -> list[int]:
        """Return the index of the voxel nearest to a point in mm (RAS+)."""
        index = np.rint(np.linalg.solve(self.affine, [*place_mm, 1])[:3]).astype(int)
        return np.clip(index, 0, np.array(self.prediction.shape) - 1).tolist()

    def volumes(self) -> dict[str, np.ndarray]:
        """Return all volumes by the name of their block in the page."""
        volumes = {"prediction": self.prediction}
        if self.reference is not None:
            volumes["reference"] = self.reference
        return volumes | {f"image-{number}": channel.levels for number, channel in enumerate(self.channels)}

    def thinned(self, max_voxels: int) -> View:
        """Return this view with at most `max_voxels` voxels, by whole steps along the finest axes.

        Images are averaged over each block. The label of a block is that of its middle voxel, so that no new label
        appears.
        """
        steps = thinning_steps(self.prediction.shape, self.spacing, max_voxels)
        if max(steps) == 1:
            return self
        middle = tuple(slice((step - 1) // 2, None, step) for step in steps)
        prediction = self.prediction[middle]
        affine = self.affine.copy()
        affine[:3, 3] += self.affine[:3, :3] @ [(step - 1) // 2 for step in steps]
        affine[:3, :3] *= steps
        return replace(
            self,
            prediction=prediction,
            reference=None if self.reference is None else self.reference[middle],
            channels=tuple(replace(c, levels=_block_means(c.levels, steps, prediction.shape)) for c in self.channels),
            affine=affine,
            steps=tuple(old * new for old, new in zip(self.steps, steps, strict=True)),
        )

    def without_last_channel(self) -> View:
        """Return this view without its last channel."""
        *kept, last = self.channels
        return replace(self, channels=tuple(kept), left_out=(last.name, *self.left_out))

    @property
    def remarks(self) -> tuple[str, ...]:
        """The notes, the omitted channels, and the reduction of the resolution."""
        notes = list(self.notes)
        if self.left_out:
            notes.append(f"without {', '.join(self.left_out)}: the page would be too large")
        if max(self.steps) > 1:
            shape = shape_text(self.prediction.shape)
            notes.append(f"one of {shape_text(self.steps)} voxels is shown ({shape}); the numbers are of all voxels")
        return tuple(notes)


def thinning_steps(shape: Sequence[int], spacing: Sequence[float], max_voxels: int) -> tuple[int, ...]:
    """Return steps per axis that leave at most `max_voxels`, increased along the axis that is finest so far."""
    steps = [1] * len(shape)

    def num_left() -> int:
        return math.prod(-(-size // step) for size, step in zip(shape, steps, strict=True))

    while num_left() > max(max_voxels, 1):
        open_axes = [axis for axis in range(len(shape)) if steps[axis] < shape[axis]]
        steps[min(open_axes, key=lambda axis: spacing[axis] * steps[axis])] += 1
    return tuple(steps)


def _block_means(image: np.ndarray, steps: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """Average over each block of steps; incomplete blocks at the end repeat the last voxel."""
    smooth = image
    for axis, step in enumerate(steps):
        if step > 1:
            # a window of even size is centred one voxel further left unless it is moved
            smooth = ndimage.uniform_filter1d(smooth, step, axis=axis, mode="nearest", origin=step % 2 - 1)
    middle = tuple(slice((step - 1) // 2, None, step) for step in steps)
    return smooth[middle][tuple(slice(0, size) for size in shape)]


def shape_text(shape: Sequence[int]) -> str:
    """Format sizes as 64×64×32."""
    return "×".join(str(size) for size in shape)


MARGIN_MM = 20.0
MAX_VOXELS = 2_500_000
# A crop of a huge scan is subsampled to at most so many voxels before anything is computed from it.
_MAX_CROPPED_VOXELS = 8 * MAX_VOXELS
# One byte per voxel: background and 255 values.
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
        grid: grid of the label maps and images.
        images: name and array of each channel, of the same shape; consumed one at a time.
        box: region to show; empty slices keep the whole image.
        modalities: channel name → modality; others are guessed from the values.
        has_patient: False if the affine says nothing about a patient.
        known: label values to show; None shows all above 0.

    Returns:
        The view at full resolution, or with at most 20 million voxels.
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
    picks = thinning_steps(lengths, grid.spacing, _MAX_CROPPED_VOXELS)
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
    """Map each voxel to the position of its value, counted from 1; 0 for background and every other value."""
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
    """Return the grid of every n-th voxel of a box."""
    steps = [side.step for side in picked]
    start = np.diag([*steps, *[1] * (4 - len(steps))]).astype(float)
    start[: len(steps), 3] = [side.start for side in picked]
    shape = tuple(-(-(side.stop - side.start) // side.step) for side in picked)
    return Grid(shape, grid.affine @ start)


def _values(maps: Sequence[np.ndarray]) -> tuple[int, ...]:
    found = np.unique(np.concatenate([np.unique(labels) for labels in maps]))
    return tuple(int(value) for value in found if value > 0)
