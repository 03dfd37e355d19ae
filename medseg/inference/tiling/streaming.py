"""Predict, blend and restore in one sweep: native labels without classes × volume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from monai.data import MetaTensor

from medseg.inference.tiling.blending import Carried, FinishedBlock, importance_map
from medseg.inference.tiling.merging import merge_tiles
from medseg.inference.tiling.tiles import TileGrid, clear_air, lay_tiles
from medseg.transforms.restore.grid_map import map_grids
from medseg.transforms.restore.label_decision import SLAB_VALUES, LabelDecision, LabelRestorer, Observer
from medseg.transforms.restore.native import restore_sheared
from medseg.transforms.restore.resample import SeparableResampler, memory_order
from medseg.volumes import Grid


class NativeAssembly:
    """Restores each finished block at once: what lies between two blocks is interpolated when the second arrives.

    Blocks come in the order of `Blender`: slabs along the longest axis, rows along the second. Kept between blocks are
    the last planes of the slab before and the last rows of the block before, as many as the interpolation reaches
    back (one for linear, three for cubic, none where nothing is interpolated).

    Args:
        tail: restores a region from a block of the model grid.
        out: labels on the native grid, written in place.
        num_values: channels of the blocks.
    """

    def __init__(self, tail: LabelRestorer, out: torch.Tensor, num_values: int) -> None:
        self.tail = tail
        self.out = out
        self.num_values = num_values
        self.resampler = tail.resampler
        self.row_end = self.resampler.axes[1].model_size
        self.planes_before: torch.Tensor | None = None
        self.planes_next: torch.Tensor | None = None
        self.rows_before: torch.Tensor | None = None

    def add(self, block: FinishedBlock) -> None:
        """Write the native voxels that the block completes; those of a block without values are background."""
        order = self.resampler.axis_order
        values = block.values
        if values is None:
            values = torch.zeros(self.num_values, *(part.stop - part.start for part in block.region))
        values = values.permute(0, *(axis + 1 for axis in order))
        slab, row = block.region[order[0]], block.region[order[1]]
        extended = self._extend(values, slab, row)
        plane_halo, row_halo = slab.stop - extended.shape[1], row.stop - extended.shape[2]
        origin = (plane_halo, row_halo, *([0] * (values.ndim - 3)))
        region = [
            self.resampler.ready(0, slab.start, slab.stop),
            self.resampler.ready(1, row.start, row.stop),
            *(slice(0, axis.native_size) for axis in self.resampler.axes[2:]),
        ]
        if block.values is None:
            self.out.permute(*self.resampler.native_axes)[tuple(region)] = self.tail.decision.label_values[0]
        else:
            self.tail(extended, origin, region, self.out)
        self._keep(extended, slab, row)

    def _extend(self, values: torch.Tensor, slab: slice, row: slice) -> torch.Tensor:
        """The block with the planes and rows before it that interpolation reaches back to."""
        planes = 0 if self.planes_before is None else self.planes_before.shape[1]
        rows = 0 if self.rows_before is None else self.rows_before.shape[2]
        if not planes and not rows:
            return values
        extended = self._empty(values, planes + values.shape[1], rows + values.shape[2])
        extended[:, planes:, rows:] = values
        if self.planes_before is not None:
            extended[:, :planes] = self.planes_before[:, :, row.start - rows : row.stop]
        if self.rows_before is not None:
            extended[:, planes:, :rows] = self.rows_before[:, -values.shape[1] :]
        return extended

    def _keep(self, extended: torch.Tensor, slab: slice, row: slice) -> None:
        plane_halo, row_halo = self.resampler.halos[:2]
        is_last_row = row.stop == self.row_end
        self.rows_before = extended[:, :, -row_halo:].clone() if row_halo and not is_last_row else None
        if plane_halo and slab.stop < self.resampler.axes[0].model_size:
            kept = extended[:, -plane_halo:, row.start - row.stop :]
            if self.planes_next is None:
                self.planes_next = self._empty(kept, kept.shape[1], self.row_end)
            self.planes_next[:, :, row.start : row.stop] = kept
        if is_last_row:
            self.planes_before, self.planes_next = self.planes_next, None

    @staticmethod
    def _empty(like: torch.Tensor, planes: int, rows: int) -> torch.Tensor:
        """Room for that many planes and rows, axes in memory as in `like`."""
        shape = (like.shape[0], planes, rows, *like.shape[3:])
        return torch.empty_permuted(shape, memory_order(like), dtype=like.dtype, device=like.device)


@dataclass(frozen=True)
class Window:
    """How an image is cut into tiles and put together again.

    Args:
        tile: in voxels, one size an axis.
        overlap: fraction of a tile shared with its neighbour, in [0, 1).
        blending: weights of a tile's voxels.
        batch_size: tiles given to the network at once.
        interpolation: from the model grid to the native grid.
        device: where tiles are blended and restored.
        carried: how unfinished sums wait for the next slab of tiles; see `Blender`.
        slab_values: values resampled to the native grid at once.
        is_pipelined: cut, blend and restore in a thread of its own while the network runs.
    """

    tile: tuple[int, ...]
    overlap: float = 0.5
    blending: Literal["gaussian", "constant"] = "gaussian"
    batch_size: int = 1
    interpolation: Literal["linear", "cubic"] = "linear"
    device: str = "cpu"
    carried: Carried = "fp32"
    slab_values: int = SLAB_VALUES
    is_pipelined: bool = True

    def over(self, shape: Sequence[int]) -> TileGrid:
        """The tiles over an image of that shape."""
        return lay_tiles(shape, self.tile, self.overlap)


def predict_labels(
    image: torch.Tensor,
    model_affine: Any,
    native_affine: Any,
    native_shape: Sequence[int],
    predict: Callable[[torch.Tensor], torch.Tensor],
    decision: LabelDecision,
    window: Window,
    head_weight: torch.Tensor | None = None,
    head_bias: torch.Tensor | None = None,
    observers: Sequence[Observer] = (),
    on_tiles: Callable[[int, int], None] | None = None,
    left_out: frozenset[tuple[int, ...]] = frozenset(),
) -> torch.Tensor:
    """Labels on the native grid of an image on the model grid.

    Args:
        image: (C, *model grid).
        model_affine: voxel index to mm of the model grid.
        native_affine: voxel index to mm of the native grid.
        native_shape: its shape.
        predict: tiles (B, C, *tile) to values (B, K, *tile).
        decision: from logits to label values.
        window: tiles and blending.
        head_weight: (classes, K) still to be applied to the values; None where they are logits.
        head_bias: (classes,) of the head.
        observers: see every logit on the native grid.
        on_tiles: called with (tiles done, tiles in all).
        left_out: tiles that are background without being predicted; see medseg.inference.tiling.tiles.

    Returns:
        (*native shape) integers on the CPU.
    """
    grid = window.over(image.shape[1:])
    weight = importance_map(grid.tile, window.blending, torch.device(window.device))
    done = 0

    def count(tiles: int) -> None:
        nonlocal done
        done += tiles
        if on_tiles is not None:
            on_tiles(done, grid.num_tiles)

    grid_map = map_grids(model_affine, grid.image_shape, native_affine, native_shape)

    def merge(consume: Callable[[FinishedBlock], None]) -> None:
        merge_tiles(
            image, grid, weight, predict, consume, window.batch_size, on_tiles=count, carried=window.carried,
            is_pipelined=window.is_pipelined, left_out=frozenset() if grid_map is None else left_out,
        )  # fmt: skip

    head_weight, head_bias = (None if part is None else part.to(window.device) for part in (head_weight, head_bias))
    num_values = decision.num_channels if head_weight is None else head_weight.shape[1]
    if grid_map is None:
        whole = torch.empty(num_values, *grid.image_shape, device=window.device)

        def place(block: FinishedBlock) -> None:
            assert block.values is not None  # every tile is predicted here
            if head_weight is None:
                decision.check(len(block.values))
            whole[(slice(None), *block.region)] = block.values

        merge(place)
        return restore_sheared(
            whole, model_affine, native_affine, native_shape, decision, head_weight, head_bias, observers
        ).cpu()
    resampler = SeparableResampler(grid_map, window.interpolation)
    out = torch.empty(tuple(native_shape), dtype=decision.dtype)
    tail = LabelRestorer(resampler, decision, head_weight, head_bias, observers, window.slab_values)
    merge(NativeAssembly(tail, out, num_values).add)
    clear_air(out, left_out, grid, resampler, decision.label_values[0])
    return out


def is_sheared(image: MetaTensor, native: Grid) -> bool:
    """Whether a model grid and a native grid are related by a shear, which only linear interpolation undoes."""
    return map_grids(image.affine, image.shape[1:], native.affine, native.shape) is None
