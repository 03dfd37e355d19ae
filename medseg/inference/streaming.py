"""Predict, blend and restore in one sweep: native labels without classes × volume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from monai.data import MetaTensor

from medseg.inference.air import clear_air
from medseg.inference.blending import FinishedBlock, importance_map
from medseg.inference.carried_block import Carried
from medseg.inference.merging import merge_tiles
from medseg.inference.native_assembly import NativeAssembly
from medseg.inference.tiles import TileGrid, lay_tiles
from medseg.transforms.grid_map import map_grids
from medseg.transforms.label_decision import LabelDecision
from medseg.transforms.label_tail import SLAB_VALUES, LabelTail, Observer
from medseg.transforms.resample import SeparableResampler
from medseg.transforms.sheared import restore_sheared
from medseg.volumes import Grid


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
        left_out: tiles that are background without being predicted; see medseg.inference.air.

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
    tail = LabelTail(resampler, decision, head_weight, head_bias, observers, window.slab_values)
    merge(NativeAssembly(tail, out, num_values).add)
    clear_air(out, left_out, grid, resampler, decision.label_values[0])
    return out


def is_sheared(image: MetaTensor, native: Grid) -> bool:
    """Whether a model grid and a native grid are related by a shear, which only linear interpolation undoes."""
    return map_grids(image.affine, image.shape[1:], native.affine, native.shape) is None
