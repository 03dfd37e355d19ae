"""Sliding-window inference as a MONAI Inferer: logits on the model grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer

from medseg.inference.blending import FinishedBlock, importance_map
from medseg.inference.merging import merge_tiles
from medseg.inference.tiles import lay_tiles


class SlidingWindow(Inferer):
    """Predict an image of any size tile by tile and blend the overlaps.

    Equals `monai.inferers.SlidingWindowInferer` given the same arguments, which stand in the same places (same tiles,
    same importance map, padding of images smaller than the tile), up to the order of additions; the defaults of overlap
    and mode are gaussian halves rather than plain quarters. Needs one unfinished slab beside the result instead of a
    second volume for the weights.

    Args:
        roi_size: tile in voxels, one size an axis or one for all; None, 0 or less takes the image's own size along that
            axis. Volumes of one axis more than there are sizes are predicted slice by slice along their last axis, as
            `monai.inferers.SliceInferer` does.
        sw_batch_size: tiles given to the network at once.
        overlap: fraction of a tile shared with its neighbour, in [0, 1), one for all axes or one an axis.
        mode: "gaussian" or "constant" weights of a tile's voxels.
        sigma_scale: standard deviation of the gaussian weights in tile sizes.
        padding_mode: "constant", the only one.
        cval: what images smaller than the tile are padded with.
        sw_device: where tiles are predicted; None is the image's device.
        device: where logits are blended and returned; None is the image's device.
    """

    def __init__(
        self,
        roi_size: Sequence[int | None] | int,
        sw_batch_size: int = 1,
        overlap: float | Sequence[float] = 0.5,
        mode: Literal["gaussian", "constant"] = "gaussian",
        sigma_scale: float | Sequence[float] = 0.125,
        padding_mode: Literal["constant"] = "constant",
        cval: float = 0.0,
        sw_device: torch.device | str | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if sw_batch_size < 1:
            raise ValueError(f"sw_batch_size must be at least 1, found {sw_batch_size}")
        if padding_mode != "constant":
            raise ValueError(f"padding_mode must be constant, found {padding_mode!r}")
        self.roi_size = roi_size if isinstance(roi_size, int) else tuple(int(n or 0) for n in roi_size)
        self.sw_batch_size = sw_batch_size
        self.overlap = overlap
        self.mode = mode
        self.sigma_scale = sigma_scale
        self.cval = cval
        self.sw_device = sw_device
        self.device = device

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Logits (B, K, *image) of a batch of images (B, C, *image); a MetaTensor keeps its metadata.

        Args:
            inputs: images on the model grid.
            network: (b, C, *tile) to (b, K, *tile).
            args: passed on to the network.
            kwargs: passed on to the network.
        """
        plain = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        is_slicewise = not isinstance(self.roi_size, int) and len(self.roi_size) == plain.ndim - 3
        predict = self._predict_slices if is_slicewise else self._predict
        merged = predict(plain, lambda tiles: _plain(network(tiles, *args, **kwargs)))
        return MetaTensor(merged).copy_meta_from(inputs) if isinstance(inputs, MetaTensor) else merged

    def _predict_slices(self, plain: torch.Tensor, predict: Callable[[torch.Tensor], Any]) -> torch.Tensor:
        merged: torch.Tensor | None = None
        for number in range(plain.shape[-1]):
            found = self._predict(plain[..., number], predict)
            if merged is None:
                merged = found.new_empty((*found.shape, plain.shape[-1]))
            merged[..., number] = found
        if merged is None:
            raise ValueError(f"a volume needs at least one slice, found shape {tuple(plain.shape)}")
        return merged

    def _predict(self, plain: torch.Tensor, predict: Callable[[torch.Tensor], Any]) -> torch.Tensor:
        device = torch.device(self.device or plain.device)
        tile_device = torch.device(self.sw_device or plain.device)
        size = (self.roi_size,) * (plain.ndim - 2) if isinstance(self.roi_size, int) else self.roi_size
        grid = lay_tiles(plain.shape[2:], size, self.overlap, self.cval)
        weight = importance_map(grid.tile, self.mode, device, self.sigma_scale)
        merged: torch.Tensor | None = None
        for b, image in enumerate(plain):

            def place(block: FinishedBlock, b: int = b) -> None:
                nonlocal merged
                if block.values is None:
                    raise RuntimeError("no tile is left out here")
                if merged is None:
                    shape = (plain.shape[0], block.values.shape[0], *grid.image_shape)
                    merged = torch.empty(shape, dtype=torch.float32, device=device)
                merged[b][(slice(None), *block.region)] = block.values

            merge_tiles(image, grid, weight, predict, place, self.sw_batch_size, tile_device)
        if merged is None:
            raise ValueError(f"a batch needs at least one image, found shape {tuple(plain.shape)}")
        return merged


def _plain(output: Any) -> Any:
    return output.as_tensor() if isinstance(output, MetaTensor) else output
