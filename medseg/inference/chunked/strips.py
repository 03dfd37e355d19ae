"""Cut a volume into strips that fit into memory, and collect the labels of a strip into layers of whole chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import numpy as np
import torch

from medseg.inference.tiling.blending import Blender
from medseg.inference.tiling.streaming import NativeAssembly, Window
from medseg.inference.tiling.tiles import TileGrid, tiles_of_box
from medseg.transforms.restore.label_decision import LabelDecision, LabelRestorer
from medseg.transforms.restore.resample import SeparableResampler

Box = tuple[slice, ...]


@dataclass(frozen=True)
class Strip:
    """A box of the native grid, with the tiles and the part of the model grid that it is made from.

    Args:
        box: native voxels along each axis of the file.
        grid: the tiles that touch it.
        origin: first model voxel of the part that these tiles cover, per axis.
        resampler: from that part to the box.
    """

    box: Box
    grid: TileGrid
    origin: tuple[int, ...]
    resampler: SeparableResampler


def cut_strip(box: Sequence[slice], grid: TileGrid, resampler: SeparableResampler) -> Strip:
    """Return the tiles and the resampler of a box of the native grid.

    Args:
        box: native voxels along each axis of the file.
        grid: tiles of the whole model grid.
        resampler: from the whole model grid to the native grid.
    """
    native = [box[axis] for axis in resampler.native_axes]
    model = [slice(0)] * len(native)
    for number, axis in enumerate(resampler.axis_order):
        model[axis] = resampler.needed(number, native[number])
    part, origin = tiles_of_box(grid, model)
    covered = [slice(origin[axis], origin[axis] + part.image_shape[axis]) for axis in resampler.axis_order]
    return Strip(tuple(box), part, origin, resampler.cropped(native, covered))


def strip_boxes(shape: Sequence[int], resampler: SeparableResampler, chunks: Sequence[int], count: int) -> list[Box]:
    """Cut a volume across the second axis of streaming into boxes of whole chunks.

    Args:
        shape: of the native grid.
        resampler: from the model grid to the native grid.
        chunks: size of a written chunk along each native axis.
        count: number of boxes; fewer are returned if there are fewer chunks.
    """
    axis = resampler.native_axes[1]
    layers = ceil(shape[axis] / chunks[axis])
    size = ceil(layers / count) * chunks[axis]
    whole = [slice(0, n) for n in shape]
    strips = []
    for start in range(0, shape[axis], size):
        whole[axis] = slice(start, min(start + size, shape[axis]))
        strips.append(tuple(whole))
    return strips


def strip_bytes(
    strip: Strip, num_channels: int, num_values: int, has_head: bool, decision: LabelDecision, window: Window,
    chunks: Sequence[int], itemsize: int,
) -> tuple[int, int]:  # fmt: skip
    """Estimate the memory that one strip takes beside the network.

    Args:
        strip: the strip.
        num_channels: channels of the image.
        num_values: channels that are blended.
        has_head: True if they are features.
        decision: from logits to label values.
        window: tiles and blending.
        chunks: size of a written chunk along each native axis.
        itemsize: bytes of a stored voxel of the image.

    Returns:
        Bytes held from the first tile to the last, and bytes needed to blend and restore one batch.
    """
    grid, resampler, float32 = strip.grid, strip.resampler, torch.float32.itemsize
    first, *rest = grid.axis_order
    plane = prod(grid.image_shape[axis] for axis in rest)
    thickness = min(grid.tile[first], grid.image_shape[first])
    batch = float32 * num_channels * window.batch_size * prod(window.tile)
    held = float32 * num_channels * plane * thickness + (2 if window.is_pipelined else 1) * 2 * batch
    held += Blender.num_bytes(grid, num_values)
    kept, extended = NativeAssembly.num_bytes(resampler, grid.largest_block, num_values)
    native_plane = prod(axis.native_size for axis in resampler.axes[1:])
    native_thickness = ceil(grid.largest_block[0] * resampler.axes[0].native_size / resampler.axes[0].model_size) + 1
    layers = native_plane * (native_thickness + 2 * chunks[resampler.native_axes[0]])
    held += kept + decision.dtype.itemsize * layers
    # Loading a window reads the stored voxels of its new planes, decodes chunks, and interpolates a slab in float64.
    zoom = native_plane * native_thickness / max(1, plane * grid.largest_block[0])
    loading = int(plane * thickness * zoom) * (itemsize + float32) + plane * thickness * float32 + (96 << 20)
    restoring = LabelRestorer.num_bytes(
        resampler, grid.largest_block, num_values, decision.num_channels, has_head, False, window.slab_values
    )
    blending = num_values * float32 * window.batch_size * prod(window.tile) + extended + restoring
    return held, blending + loading


class LabelLayers:
    """Collect the labels of a strip, and write each layer of chunks as soon as it is complete.

    It takes the place of the array of labels in `NativeAssembly`.

    Args:
        strip: the strip.
        thickness: native voxels of a layer along the first axis of streaming.
        decision: from logits to label values.
        write: called with a box of the native grid and its labels, in the axis order of the file.
    """

    def __init__(
        self, strip: Strip, thickness: int, decision: LabelDecision, write: Callable[[Box, np.ndarray], None]
    ) -> None:
        self.strip = strip
        self.thickness = thickness
        self.dtype = decision.dtype
        self.write = write
        self.axes = strip.resampler.native_axes
        self.sizes = tuple(axis.native_size for axis in strip.resampler.axes)
        self.first = strip.box[self.axes[0]].start
        self.layers: dict[int, torch.Tensor] = {}
        self.missing: dict[int, int] = {}

    def permute(self, *axes: int) -> LabelLayers:
        """Return the labels with their axes in streaming order, as `torch.Tensor.permute` does."""
        if axes != self.axes:
            raise ValueError(f"labels are stored in the order {self.axes}, found {axes}")
        return self

    def __setitem__(self, region: Sequence[slice], labels: Any) -> None:
        planes, *rest = region
        if any(part.stop <= part.start for part in region):
            return
        begin, end = self.first + planes.start, self.first + planes.stop
        for number in range(begin // self.thickness, (end - 1) // self.thickness + 1):
            low, high = max(begin, number * self.thickness), min(end, (number + 1) * self.thickness)
            start = self._start(number)
            layer = self._layer(number)
            values = labels[low - begin : high - begin] if isinstance(labels, torch.Tensor) else labels
            layer[(slice(low - start, high - start), *rest)] = values
            self.missing[number] -= (high - low) * prod(part.stop - part.start for part in rest)
            if not self.missing[number]:
                self._finish(number)

    def _start(self, number: int) -> int:
        return max(self.first, number * self.thickness)

    def _layer(self, number: int) -> torch.Tensor:
        if number not in self.layers:
            stop = min(self.first + self.sizes[0], (number + 1) * self.thickness)
            self.layers[number] = torch.empty(stop - self._start(number), *self.sizes[1:], dtype=self.dtype)
            self.missing[number] = self.layers[number].numel()
        return self.layers[number]

    def _finish(self, number: int) -> None:
        layer = self.layers.pop(number)
        del self.missing[number]
        box = list(self.strip.box)
        box[self.axes[0]] = slice(self._start(number), self._start(number) + layer.shape[0])
        back = [self.axes.index(axis) for axis in range(len(self.axes))]
        self.write(tuple(box), layer.permute(*back).numpy())
