"""Predict, blend and restore an image in one pass, without a volume of classes × voxels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

import torch

from medseg.inference.tiling.blending import Blender, FinishedBlock, importance_map
from medseg.inference.tiling.merging import merge_tiles
from medseg.inference.tiling.tiles import TileGrid, label_as_background, lay_tiles
from medseg.transforms.restore.grid_map import map_grids
from medseg.transforms.restore.label_decision import (
    SLAB_VALUES,
    LabelDecision,
    LabelRestorer,
    LabelTarget,
    Observer,
    apply_head,
)
from medseg.transforms.restore.monai_grid import nearest_map
from medseg.transforms.restore.resample import SeparableResampler, memory_order
from medseg.transforms.restore.restore_labels import restore_sheared, sheared_bytes
from medseg.volumes import Grid


@dataclass(frozen=True)
class Window:
    """Settings of the sliding window: how an image is cut into tiles and put together again.

    Args:
        tile: in voxels, one size per axis.
        overlap: fraction of a tile shared with its neighbour, in [0, 1).
        blending: weights of a tile's voxels.
        batch_size: tiles per forward pass.
        interpolation: method used from the model grid to the native grid.
        padding: how images smaller than a tile are padded; "constant" pads with 0.
        slab_values: number of values resampled to the native grid at once.
        is_pipelined: extract, blend and restore in a second thread while the network runs.
    """

    tile: tuple[int, ...]
    overlap: float = 0.5
    blending: Literal["gaussian", "constant"] = "gaussian"
    batch_size: int = 1
    interpolation: Literal["linear", "cubic", "nearest"] = "linear"
    padding: Literal["constant", "reflect", "replicate", "circular"] = "constant"
    slab_values: int = SLAB_VALUES
    is_pipelined: bool = True

    def lay_tiles(self, shape: Sequence[int]) -> TileGrid:
        """Return the tiles over an image of that shape."""
        return lay_tiles(shape, self.tile, self.overlap, pad_mode=self.padding)


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
    skipped: frozenset[tuple[int, ...]] = frozenset(),
    device: torch.device | None = None,
) -> torch.Tensor:
    """Predict an image on the model grid and return its labels on the native grid.

    `prediction_bytes` states how much memory this takes; keep the two in step.

    Args:
        image: (C, *model grid).
        model_affine: voxel index to mm of the model grid.
        native_affine: voxel index to mm of the native grid.
        native_shape: shape of the native grid in voxels.
        predict: maps tiles (B, C, *tile) to values (B, K, *tile).
        decision: turns logits into label values.
        window: tiles and blending.
        head_weight: (classes, K) weight of the head to apply to the values; None if they are logits.
        head_bias: (classes,) bias of the head.
        observers: receive the logits of every native voxel.
        on_tiles: called with (tiles done, total number of tiles).
        skipped: tiles that are labelled as background without being predicted; see `air_tiles`.
        device: where tiles are cut, blended and restored; only labels and what observers keep leave it. None is the
            CPU, which is also used for a network on another device if its memory is too small.

    Returns:
        (*native shape) integers on the CPU.
    """
    device = device or torch.device("cpu")
    image = image.to(device)
    grid = window.lay_tiles(image.shape[1:])
    weight = importance_map(grid.tile, window.blending, torch.device("cpu")).to(device)
    done = 0

    def count(tiles: int) -> None:
        nonlocal done
        done += tiles
        if on_tiles is not None:
            on_tiles(done, grid.num_tiles)

    relate = nearest_map if window.interpolation == "nearest" else map_grids
    grid_map = relate(model_affine, grid.image_shape, native_affine, native_shape)

    def merge_values(consume: Callable[[FinishedBlock], None]) -> None:
        merge_tiles(
            image, grid, weight, predict, consume, window.batch_size, on_tiles=count,
            is_pipelined=window.is_pipelined and device.type == "cpu",
            skipped=frozenset() if grid_map is None else skipped,
        )  # fmt: skip

    head_weight, head_bias = (None if part is None else part.to(device) for part in (head_weight, head_bias))
    num_values = decision.num_channels if head_weight is None else head_weight.shape[1]
    merge: Merge = merge_values
    if decision.uses_probabilities:
        merge = _as_probabilities(merge_values, decision, head_weight, head_bias)
        num_values, head_weight, head_bias = decision.num_channels, None, None
    if grid_map is None:
        whole = torch.empty(num_values, *grid.image_shape, device=device)

        def place(block: FinishedBlock) -> None:
            assert block.values is not None  # no tile is skipped here
            if head_weight is None:
                decision.check(len(block.values))
            whole[(slice(None), *block.region)] = block.values

        merge(place)
        return restore_sheared(
            whole,
            model_affine,
            native_affine,
            native_shape,
            decision,
            head_weight,
            head_bias,
            observers,
            window.interpolation == "nearest",
        ).cpu()
    resampler = SeparableResampler(grid_map, window.interpolation)
    out = torch.empty(tuple(native_shape), dtype=decision.dtype)
    restorer = LabelRestorer(resampler, decision, head_weight, head_bias, observers, window.slab_values)
    merge(NativeAssembly(restorer, out, num_values, device).add)
    label_as_background(out, skipped, grid, resampler, decision.label_values[0])
    return out


Merge = Callable[[Callable[[FinishedBlock], None]], None]


def _as_probabilities(
    merge: Merge, decision: LabelDecision, head_weight: torch.Tensor | None, head_bias: torch.Tensor | None
) -> Merge:
    """Return a merge whose blocks hold probabilities, before anything is interpolated between them."""

    def merge_probabilities(consume: Callable[[FinishedBlock], None]) -> None:
        def convert(block: FinishedBlock) -> None:
            values = block.values
            if values is not None:
                logits = values if head_weight is None else apply_head(values, head_weight, head_bias)
                decision.check(len(logits))
                values = decision.probabilities(logits)
            consume(replace(block, values=values))

        merge(convert)

    return merge_probabilities


def prediction_bytes(
    model: Grid,
    native: Grid,
    num_channels: int,
    num_values: int,
    has_head: bool,
    is_observed: bool,
    decision: LabelDecision,
    window: Window,
) -> tuple[int, int]:
    """Estimate the memory that `predict_labels` takes beside the network, the labels and the observers.

    Args:
        model: the model grid.
        native: the native grid.
        num_channels: channels of the image.
        num_values: channels that are blended.
        has_head: True if they are features and the head is applied to them later.
        is_observed: True if there are observers.
        decision: as of `predict_labels`.
        window: as of `predict_labels`.

    Returns:
        Bytes held from the first tile to the last, and bytes needed to blend and restore one batch.
    """
    grid, itemsize = window.lay_tiles(model.shape), torch.float32.itemsize
    batch = itemsize * window.batch_size * prod(window.tile)
    held = itemsize * num_channels * prod(model.shape) + (2 if window.is_pipelined else 1) * num_channels * batch
    held += Blender.num_bytes(grid, num_values)
    blending = num_values * batch
    if decision.uses_probabilities:
        # Logits and probabilities of a block, and with a head the features that they are computed from.
        blending += itemsize * prod(grid.largest_block) * (2 * decision.num_channels + (num_values if has_head else 0))
        num_values, has_head = decision.num_channels, False
    grid_map = map_grids(model.affine, model.shape, native.affine, native.shape)
    if grid_map is None:
        held += itemsize * num_values * prod(model.shape)
        return held, blending + sheared_bytes(num_values, decision.num_channels, native.spatial_dims, is_observed)
    resampler = SeparableResampler(grid_map, window.interpolation)
    kept, extended = NativeAssembly.num_bytes(resampler, grid.largest_block, num_values)
    restoring = LabelRestorer.num_bytes(
        resampler, grid.largest_block, num_values, decision.num_channels, has_head, is_observed, window.slab_values
    )
    return held + kept, blending + extended + restoring


class NativeAssembly:
    """Restore each finished block at once, and interpolate what lies between two blocks when the second one arrives.

    Blocks come in the order of `Blender`: slabs along the longest axis, rows along the second. Between blocks it keeps
    the last planes of the previous slab and the last rows of the previous block, as many as the interpolation needs:
    one for linear, three for cubic, none if the grids coincide.

    Args:
        restorer: restores a region from a block of the model grid.
        out: labels on the native grid, written in place.
        num_values: channels of the blocks.
        device: of the blocks; `out` may lie elsewhere.
    """

    def __init__(self, restorer: LabelRestorer, out: LabelTarget, num_values: int, device: torch.device) -> None:
        self.restorer = restorer
        self.out = out
        self.num_values = num_values
        self.device = device
        self.resampler = restorer.resampler
        self.row_end = self.resampler.axes[1].model_size
        self.planes_before: torch.Tensor | None = None
        self.planes_next: torch.Tensor | None = None
        self.rows_before: torch.Tensor | None = None

    @staticmethod
    def num_bytes(resampler: SeparableResampler, block: Sequence[int], num_values: int) -> tuple[int, int]:
        """Return upper bounds in bytes of the planes and rows kept between blocks, and of one block extended by them.

        Args:
            resampler: from the model grid to the native grid.
            block: model voxels of the largest block, in the resampler's streaming order.
            num_values: channels of the block.
        """
        planes, rows = resampler.halos[:2]
        if not planes and not rows:
            return 0, 0
        voxel, depth = torch.float32.itemsize * num_values, prod(block[2:])
        kept = 2 * planes * resampler.axes[1].model_size + rows * (block[0] + planes)
        return voxel * kept * depth, voxel * (block[0] + planes) * (block[1] + rows) * depth

    def add(self, block: FinishedBlock) -> None:
        """Write the native voxels that the block completes. Those of a block without values are background."""
        order = self.resampler.axis_order
        values = block.values
        if values is None:
            shape = [part.stop - part.start for part in block.region]
            values = torch.zeros(self.num_values, *shape, device=self.device)
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
            self.out.permute(*self.resampler.native_axes)[tuple(region)] = self.restorer.decision.label_values[0]
        else:
            self.restorer(extended, origin, region, self.out)
        self._keep(extended, slab, row)

    def _extend(self, values: torch.Tensor, slab: slice, row: slice) -> torch.Tensor:
        """Return the block together with the kept planes and rows before it, which interpolation needs."""
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
        """Allocate that many planes and rows, with the axes in memory as in `like`."""
        shape = (like.shape[0], planes, rows, *like.shape[3:])
        return torch.empty_permuted(shape, memory_order(like), dtype=like.dtype, device=like.device)
