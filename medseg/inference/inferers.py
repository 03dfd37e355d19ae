"""Sliding-window inference as a MONAI Inferer: logits on the model grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice, product
from typing import Any, Literal

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from torch.nn import functional as F

from medseg.errors import ShapeError
from medseg.inference.tiling.blending import FinishedBlock, importance_map
from medseg.inference.tiling.merging import merge_tiles
from medseg.inference.tiling.tiles import lay_tiles


class SlidingWindowInferer(Inferer):
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


class OverlapTileInferer(Inferer):
    """Predict every voxel once, from a tile that holds everything the network looks at around it.

    "Overlap-tile strategy for seamless segmentation of arbitrary large images" (Ronneberger et al. 2015,
    arXiv:1505.04597, Fig. 2): a network of valid convolutions gives an output smaller than its input by a margin; the
    image is mirrored at its borders by that margin, and outputs are laid side by side.

    With output offsets that are multiples of 2^pools the result equals one forward pass over the whole mirrored image:
    pooling then falls on the same voxels in every tile. That is why the paper's network (572 → 388, four pools) is used
    with a stride of 384, not 388. It holds for networks without norms that use a tile's own statistics (instance and
    group norm); with those, tiles differ from the whole image whatever the stride.

    Memory beyond the image and the result is that of one batch of tiles.

    Args:
        roi_size: input tile in voxels, one size an axis, valid for the network.
        pools: how often the network halves its resolution; strides are multiples of 2^pools.
        margin: voxels by which the output is smaller than the input on each side; None asks the network once.
        sw_batch_size: tiles given to the network at once.
        padding_mode: "reflect" mirrors the image without repeating its border (the paper's), "constant" pads with 0.
        sw_device: where tiles are predicted; None is the image's device.
        device: where the result is kept; None is the image's device.
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        pools: int = 4,
        margin: Sequence[int] | None = None,
        sw_batch_size: int = 1,
        padding_mode: Literal["reflect", "constant"] = "reflect",
        sw_device: torch.device | str | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if pools < 0 or sw_batch_size < 1:
            raise ValueError(f"pools must be ≥ 0 and sw_batch_size ≥ 1, found {pools} and {sw_batch_size}")
        if padding_mode not in ("reflect", "constant"):
            raise ValueError(f"padding_mode must be reflect or constant, found {padding_mode!r}")
        self.roi_size = tuple(int(n) for n in roi_size)
        self.pools = pools
        self.margin = None if margin is None else tuple(int(m) for m in margin)
        self.sw_batch_size = sw_batch_size
        self.padding_mode = padding_mode
        self.sw_device = sw_device
        self.device = device

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Logits (B, K, *image) of images (B, C, *image); a MetaTensor keeps its metadata.

        Raises:
            ShapeError: the numbers of axes differ, or the network's output does not fit in its input's middle.
        """
        plain = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        if plain.ndim - 2 != len(self.roi_size):
            raise ShapeError(f"a tile of {self.roi_size} cannot cover images of shape {tuple(plain.shape[2:])}")
        device = torch.device(self.device or plain.device)
        tile_device = torch.device(self.sw_device or plain.device)
        shape = tuple(plain.shape[2:])
        margin = self.margin
        if margin is None:
            probe = self._tile(plain[0], (0,) * len(shape), (0,) * len(shape))[None]
            margin = self._margin_of(network(probe.to(tile_device), *args, **kwargs))
        starts = [range(0, n, s) for n, s in zip(shape, self.stride(margin), strict=True)]
        pending = product(range(plain.shape[0]), *starts)
        merged: torch.Tensor | None = None
        while chunk := list(islice(pending, self.sw_batch_size)):
            tiles = torch.stack([self._tile(plain[b], start, margin) for b, *start in chunk])
            values = network(tiles.to(tile_device), *args, **kwargs)
            if self._margin_of(values) != margin:
                raise ShapeError(f"the network's margin is {self._margin_of(values)}, not the {margin} it was given as")
            if merged is None:
                merged = torch.empty((plain.shape[0], values.shape[1], *shape), dtype=torch.float32, device=device)
            for (b, *start), value in zip(chunk, values, strict=True):
                sizes = [min(v, n - s) for v, n, s in zip(value.shape[1:], shape, start, strict=True)]
                target = (slice(None), *(slice(s, s + n) for s, n in zip(start, sizes, strict=True)))
                merged[b][target] = value[(slice(None), *(slice(0, n) for n in sizes))].to(device, torch.float32)
            del values, value
        if merged is None:
            raise ValueError(f"a batch needs at least one image, found shape {tuple(plain.shape)}")
        return MetaTensor(merged).copy_meta_from(inputs) if isinstance(inputs, MetaTensor) else merged

    def stride(self, margin: Sequence[int]) -> tuple[int, ...]:
        """How far apart tiles are laid: the output size, rounded down to a multiple of 2^pools."""
        unit = 2**self.pools
        strides = tuple((n - 2 * m) // unit * unit for n, m in zip(self.roi_size, margin, strict=True))
        if min(strides) < 1:
            raise ShapeError(
                f"a tile of {self.roi_size} gives an output smaller than 2^{self.pools} = {unit} voxels; "
                "use a larger tile"
            )
        return strides

    def _margin_of(self, values: torch.Tensor) -> tuple[int, ...]:
        lost = [n - v for n, v in zip(self.roi_size, values.shape[2:], strict=True)]
        if any(n < 0 or n % 2 for n in lost):
            raise ShapeError(
                f"the network's output {tuple(values.shape[2:])} is not centred in its input {self.roi_size}; valid "
                "convolutions lose the same number of voxels on both sides"
            )
        return tuple(n // 2 for n in lost)

    def _tile(self, image: torch.Tensor, start: Sequence[int], margin: Sequence[int]) -> torch.Tensor:
        """The tile (C, *roi_size) whose output begins at `start`, mirrored where it leaves the image."""
        tile = image
        for axis, (begin, size, m) in enumerate(zip(start, self.roi_size, margin, strict=True)):
            length = image.shape[axis + 1]
            position = torch.arange(begin - m, begin - m + size, device=image.device)
            if self.padding_mode == "reflect":
                tile = tile.index_select(axis + 1, mirrored(position, length))
                continue
            inside = slice(max(begin - m, 0), min(begin - m + size, length))
            tile = tile.narrow(axis + 1, inside.start, inside.stop - inside.start)
            padding = [0, 0] * (image.ndim - 2 - axis) + [inside.start - (begin - m), begin - m + size - inside.stop]
            tile = F.pad(tile, padding)
        return tile


def mirrored(position: torch.Tensor, length: int) -> torch.Tensor:
    """Positions outside 0…length−1 reflected at the first and last voxel, as often as it takes.

    Unlike torch's reflection padding it goes on where the margin is longer than the image.
    """
    if length == 1:
        return torch.zeros_like(position)
    period = 2 * (length - 1)
    folded = position.remainder(period)
    return torch.where(folded < length, folded, period - folded)
