"""Compute boxes of the network's input from the chunks of a Zarr image, equal to preprocessing the whole image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isfinite, prod

import numpy as np
import torch

from medseg.errors import VolumeError
from medseg.inference.preprocessing import SLAB_VOXELS, exact_map, model_grid
from medseg.plan import Plan
from medseg.transforms.normalization import ChannelScaling
from medseg.transforms.restore.resample import SeparableResampler
from medseg.volumes import Grid
from medseg.volumes.zarr_images import ZarrImage


class ModelImage:
    """The network's input of a Zarr image, of which boxes are computed on demand.

    Args:
        images: stores of the channels; the only one may hold all of them.
        plan: orientation and spacing.
    """

    def __init__(self, images: Sequence[ZarrImage], plan: Plan) -> None:
        self.channels = [(image, channel) for image in images for channel in range(image.num_channels)]
        self.native: Grid = images[0].grid
        self.model = model_grid(self.native, plan)
        # As in `preprocessing`, the resampler fills the model grid from the scan's grid.
        self.resampler = SeparableResampler(exact_map(self.native, self.model))
        self.offsets = [0.0] * len(self.channels)
        self.scalings: list[ChannelScaling] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Channels and voxels of the model grid."""
        return (len(self.channels), *self.model.shape)

    def box(self, region: Sequence[slice]) -> torch.Tensor:
        """Return a box (C, *region) of the input in float32; without normalisation as long as `scalings` is None.

        Args:
            region: one slice per axis of the model grid.

        Raises:
            VolumeError: a voxel is not finite or exceeds the range of float32, or a chunk is damaged.
        """
        out = torch.stack([self.channel_box(number, region) for number in range(len(self.channels))])
        if self.scalings is not None:
            for values, scaling in zip(out, self.scalings, strict=True):
                if isfinite(scaling.lower) or isfinite(scaling.upper):
                    values.clamp_(scaling.lower, scaling.upper)
                scaling.apply(values, out=values)
        return out

    def channel_box(self, number: int, region: Sequence[slice]) -> torch.Tensor:
        """Return a box of one channel before normalisation; raises as `box`."""
        image, channel = self.channels[number]
        out = torch.empty(*(part.stop - part.start for part in region))
        self._resample(image, channel, region, out, self.offsets[number])
        return out

    def _resample(
        self, image: ZarrImage, channel: int, region: Sequence[slice], out: torch.Tensor, offset: float
    ) -> None:
        resampler = self.resampler
        wanted = [region[axis] for axis in resampler.native_axes]
        need = [resampler.needed(number, part) for number, part in enumerate(wanted)]
        box = [slice(0)] * len(need)
        for axis, part in zip(resampler.axis_order, need, strict=True):
            box[axis] = part
        raw = image.read(box, channel)
        _check_finite(raw, image, box)
        source = raw.transpose(resampler.axis_order)
        target = out.permute(*resampler.native_axes)
        is_whole = all(axis.is_whole for axis in resampler.axes)
        dtype = np.float32 if is_whole else np.float64
        for planes in _slabs(wanted[0], prod(source.shape[1:])):
            within = resampler.needed(0, planes)
            with np.errstate(over="ignore"):
                slab = source[within.start - need[0].start : within.stop - need[0].start]
                slab = slab.astype(dtype if not offset else np.float64, order="K")
                if offset:
                    slab = np.subtract(slab, offset, out=slab).astype(dtype, order="K", copy=False)
            box_of_slab = (planes, *wanted[1:])
            origin = (within.start, *(each.start for each in need[1:]))
            across = resampler.across(torch.from_numpy(slab)[None], origin, box_of_slab)
            values = resampler.along(across, box_of_slab, planes)[0]
            target[planes.start - wanted[0].start : planes.stop - wanted[0].start] = values
        if raw.dtype.itemsize > out.itemsize and not all(map(isfinite, torch.stack(out.aminmax()))):
            raise VolumeError(f"{image.path}: holds values beyond the range of float32; rescale them first")

    def chunk_boxes(self, max_voxels: int) -> Iterator[tuple[slice, ...]]:
        """Yield boxes that cover the model grid, about as thick as the chunks of the store along every axis.

        Args:
            max_voxels: voxels of a box, at most; the last axis is cut last.
        """
        image = self.channels[0][0]
        sizes = list(self.model.shape)
        for axis, native in enumerate(self._native_axis_of()):
            zoom = self.model.shape[axis] / self.native.shape[native]
            thick = min(self.model.shape[axis], max(1, round(image.chunks[native] * zoom)))
            if prod(sizes) > max_voxels:
                sizes[axis] = thick
        steps = [range(0, n, s) for n, s in zip(self.model.shape, sizes, strict=True)]
        for start in np.ndindex(*(len(step) for step in steps)):
            first = [step[i] for step, i in zip(steps, start, strict=True)]
            yield tuple(slice(a, min(a + s, n)) for a, s, n in zip(first, sizes, self.model.shape, strict=True))

    def _native_axis_of(self) -> list[int]:
        """Return the axis of the scan along each axis of the model grid."""
        axes = dict(zip(self.resampler.native_axes, self.resampler.axis_order, strict=True))
        return [axes[axis] for axis in range(len(axes))]


def _slabs(part: slice, plane: int) -> Iterator[slice]:
    thickness = max(1, SLAB_VOXELS // max(1, plane))
    for start in range(part.start, part.stop, thickness):
        yield slice(start, min(start + thickness, part.stop))


def _check_finite(values: np.ndarray, image: ZarrImage, box: Sequence[slice]) -> None:
    if values.dtype.kind != "f":
        return
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.sum(values, dtype=np.float64)):
            return
    bad = int(values.size - np.count_nonzero(np.isfinite(values)))
    if bad:
        place = ", ".join(f"{part.start}:{part.stop}" for part in box)
        raise VolumeError(f"{image.path}: {bad} voxels in [{place}] are NaN or infinite; replace them first")


class RollingImage:
    """Planes of a model image that a row of tiles needs, for `TileGrid.extract`.

    It holds as many planes along one axis as a tile is thick. Tiles must come in ascending order along that axis.

    Args:
        image: the whole input.
        origin: model voxel at which the part begins, per axis.
        shape: voxels of the part.
        axis: along which tiles ascend.
        thickness: voxels of a tile along that axis.
    """

    def __init__(
        self, image: ModelImage, origin: Sequence[int], shape: Sequence[int], axis: int, thickness: int
    ) -> None:
        self.image = image
        self.origin = tuple(origin)
        self.shape = (image.shape[0], *shape)
        self.axis = axis
        self.thickness = min(thickness, shape[axis])
        rest = [n for number, n in enumerate(shape) if number != axis]
        # Plane p is kept at index p modulo the thickness, so that no plane moves when the window does.
        self.planes = torch.empty(self.thickness, image.shape[0], *rest)
        self.begin = self.end = 0

    def __getitem__(self, index: tuple[slice, ...]) -> torch.Tensor:
        _, *region = index
        low, high = region[self.axis].start, min(region[self.axis].stop, self.shape[1 + self.axis])
        self._load(low, high)
        rest = [part for number, part in enumerate(region) if number != self.axis]
        order = torch.arange(low, high) % self.thickness
        tile = self.planes[(slice(None), slice(None), *rest)].index_select(0, order)
        return tile.movedim(0, 1 + self.axis)

    def _load(self, low: int, high: int) -> None:
        if low < self.begin or high - low > self.thickness:
            raise ValueError(f"planes {low}:{high} do not follow {self.begin}:{self.end}")
        first = max(low, self.end)
        if first < high:
            region = [slice(o, o + n) for o, n in zip(self.origin, self.shape[1:], strict=True)]
            region[self.axis] = slice(self.origin[self.axis] + first, self.origin[self.axis] + high)
            planes = self.image.box(region).movedim(1 + self.axis, 0)
            self.planes[torch.arange(first, high) % self.thickness] = planes
            self.end = high
        self.begin = low
