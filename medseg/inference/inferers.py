"""Sliding-window and overlap-tile inference as MONAI Inferers, which return logits on the model grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice, product
from typing import Any, Literal

import torch
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.utils import PytorchPadMode
from torch.nn import functional as F

from medseg.errors import ShapeError
from medseg.inference.tiling.blending import FinishedBlock, importance_map
from medseg.inference.tiling.merging import check_finite_values, merge_tiles
from medseg.inference.tiling.tiles import lay_tiles

PADDING_MODES = ("constant", "reflect", "replicate", "circular")


class SlidingWindowInferer(Inferer):
    """Predict an image of any size tile by tile and blend the overlaps, in bounded memory.

    A drop-in replacement for `monai.inferers.SlidingWindowInferer`: the arguments have the same names, order and
    defaults, and the result is equal up to the order of additions. It holds one unfinished slab beside the result,
    where MONAI holds a second volume for the weights. The network must return one tensor.

    Args:
        roi_size: tile in voxels, one size per axis or one for all; None, 0 or less takes the image's own size along
            that axis. If volumes have one axis more than there are sizes, they are predicted slice by slice along their
            last axis, as `monai.inferers.SliceInferer` does.
        sw_batch_size: tiles per forward pass.
        overlap: fraction of a tile shared with its neighbour, in [0, 1); one for all axes, or one per axis.
        mode: "constant" or "gaussian" weights of a tile's voxels.
        sigma_scale: standard deviation of the gaussian weights in tile sizes.
        padding_mode: how images smaller than the tile are padded: "constant", "reflect", "replicate" or "circular".
        cval: value of the padding in mode "constant".
        sw_device: device of the network; None is the image's device.
        device: device on which logits are blended and returned; None is the image's device.
        progress: show a progress bar (needs tqdm).
        cache_roi_weight_map: accepted and ignored, because computing the weights takes no noticeable time.
        cpu_thresh: accepted and ignored; set `device` instead.
        buffer_steps: accepted and ignored, because the memory is bounded without it.
        buffer_dim: as buffer_steps.
        with_coord: must be False. Giving the network the coordinates of its tiles is not supported.
    """

    def __init__(
        self,
        roi_size: Sequence[int | None] | int,
        sw_batch_size: int = 1,
        overlap: float | Sequence[float] = 0.25,
        mode: Literal["constant", "gaussian"] = "constant",
        sigma_scale: float | Sequence[float] = 0.125,
        padding_mode: Literal["constant", "reflect", "replicate", "circular"] = "constant",
        cval: float = 0.0,
        sw_device: torch.device | str | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
        cache_roi_weight_map: bool = False,
        cpu_thresh: int | None = None,
        buffer_steps: int | None = None,
        buffer_dim: int = -1,
        with_coord: bool = False,
    ) -> None:
        super().__init__()
        if sw_batch_size < 1:
            raise ValueError(f"sw_batch_size must be at least 1, found {sw_batch_size}")
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode must be one of {', '.join(PADDING_MODES)}, found {padding_mode!r}")
        if with_coord:
            raise ValueError("with_coord is not supported; use monai.inferers.SlidingWindowInferer")
        self.roi_size = roi_size if isinstance(roi_size, int) else tuple(int(n or 0) for n in roi_size)
        self.sw_batch_size = sw_batch_size
        self.overlap = overlap
        self.mode = mode
        self.sigma_scale = sigma_scale
        self.padding_mode = str(PytorchPadMode(padding_mode))
        self.cval = cval
        self.sw_device = sw_device
        self.device = device
        self.progress = progress

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Return the logits (B, K, *image) of images (B, C, *image). A MetaTensor keeps its metadata.

        Args:
            inputs: images on the model grid.
            network: maps (b, C, *tile) to (b, K, *tile).
            args: passed to the network.
            kwargs: passed to the network.

        Raises:
            ShapeError: the network does not return one tensor of the tile's shape.
            NonFiniteError: the network returns a value that is NaN or infinite.
        """
        plain = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        is_slicewise = not isinstance(self.roi_size, int) and len(self.roi_size) == plain.ndim - 3
        predict = self._predict_slices if is_slicewise else self._predict
        merged = predict(plain, lambda tiles: _plain(network(tiles, *args, **kwargs)))
        return MetaTensor(merged).copy_meta_from(inputs) if isinstance(inputs, MetaTensor) else merged

    def _predict_slices(self, plain: torch.Tensor, predict: Callable[[torch.Tensor], Any]) -> torch.Tensor:
        merged: torch.Tensor | None = None
        for number in range(plain.shape[-1]):
            logits = self._predict(plain[..., number], predict)
            if merged is None:
                merged = logits.new_empty((*logits.shape, plain.shape[-1]))
            merged[..., number] = logits
        if merged is None:
            raise ValueError(f"a volume needs at least one slice, found shape {tuple(plain.shape)}")
        return merged

    def _predict(self, plain: torch.Tensor, predict: Callable[[torch.Tensor], Any]) -> torch.Tensor:
        device = torch.device(self.device or plain.device)
        tile_device = torch.device(self.sw_device or plain.device)
        size = (self.roi_size,) * (plain.ndim - 2) if isinstance(self.roi_size, int) else self.roi_size
        grid = lay_tiles(plain.shape[2:], size, self.overlap, self.cval, self.padding_mode)
        weight = importance_map(grid.tile, self.mode, device, self.sigma_scale)
        bar = _progress_bar(grid.num_tiles * len(plain)) if self.progress else None
        merged: torch.Tensor | None = None
        for b, image in enumerate(plain):

            def place(block: FinishedBlock, b: int = b) -> None:
                nonlocal merged
                assert block.values is not None  # no tile is skipped
                if merged is None:
                    shape = (plain.shape[0], block.values.shape[0], *grid.image_shape)
                    merged = torch.empty(shape, dtype=torch.float32, device=device)
                merged[b][(slice(None), *block.region)] = block.values

            on_tiles = None if bar is None else bar.update
            merge_tiles(image, grid, weight, predict, place, self.sw_batch_size, tile_device, on_tiles)
        if bar is not None:
            bar.close()
        if merged is None:
            raise ValueError(f"a batch needs at least one image, found shape {tuple(plain.shape)}")
        return merged


def _plain(output: Any) -> Any:
    return output.as_tensor() if isinstance(output, MetaTensor) else output


def _progress_bar(total: int) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, unit="tile")


class OverlapTileInferer(Inferer):
    """Predict every voxel once, from a tile that holds the voxel's whole field of view.

    This is the "overlap-tile strategy for seamless segmentation of arbitrary large images" of Ronneberger et al. 2015
    (arXiv:1505.04597, Fig. 2). The output of a network with valid convolutions is smaller than its input by a margin.
    The image is mirrored at its borders by that margin, and the outputs are placed side by side.

    Tiles lie at multiples of 2^pools, so that pooling combines the same voxels in every tile. The result then equals
    one forward pass over the whole mirrored image. For this reason the paper's network (572 → 388, four pools) is used
    with a stride of 384 and not 388. Networks with instance or group normalisation are an exception, because their
    result depends on the statistics of the tile.

    Beside the image and the result, it holds one batch of tiles.

    Args:
        roi_size: input tile in voxels, one size per axis, valid for the network.
        pools: number of times the network halves its resolution; strides are multiples of 2^pools.
        margin: voxels by which the output is smaller than the input on each side; None measures it.
        sw_batch_size: tiles per forward pass.
        padding_mode: "reflect" mirrors the image without repeating its border, as in the paper; "constant" pads with 0.
        sw_device: device of the network; None is the image's device.
        device: device of the result; None is the image's device.
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
        """Return the logits (B, K, *image) of images (B, C, *image). A MetaTensor keeps its metadata.

        Args:
            inputs: images on the model grid.
            network: maps (b, C, *tile) to (b, K, *output).
            args: passed to the network.
            kwargs: passed to the network.

        Raises:
            ShapeError: the numbers of axes differ, or the output is not centred in the input.
            NonFiniteError: the network returns a value that is NaN or infinite.
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
                raise ShapeError(f"the network's margin is {self._margin_of(values)}, expected {margin} as given")
            check_finite_values(values)
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
        """Return the distance between tiles: the output size, rounded down to a multiple of 2^pools."""
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
                f"the network's output {tuple(values.shape[2:])} is not centred in its input {self.roi_size}; it must "
                "be smaller by the same number of voxels on both sides"
            )
        return tuple(n // 2 for n in lost)

    def _tile(self, image: torch.Tensor, start: Sequence[int], margin: Sequence[int]) -> torch.Tensor:
        """Return the tile (C, *roi_size) whose output begins at `start`, padded where it leaves the image."""
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
    """Reflect positions outside 0…length−1 at the first and last voxel, repeatedly if necessary.

    Unlike torch's reflection padding this allows margins that are longer than the image.
    """
    if length == 1:
        return torch.zeros_like(position)
    period = 2 * (length - 1)
    folded = position.remainder(period)
    return torch.where(folded < length, folded, period - folded)
