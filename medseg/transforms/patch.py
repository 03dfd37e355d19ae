"""Copying one patch out of a volume, its affine moved along."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.meta_obj import get_track_meta
from monai.utils import MetaKeys

from medseg.errors import ShapeError
from medseg.transforms.case import case_name


def crop_patch(
    image: Any,
    start: Sequence[int],
    size: Sequence[int],
    padding_value: float = 0.0,
    meta: Mapping[str, Any] | None = None,
) -> torch.Tensor:
    """Copy the patch of (C, …) whose first voxel is `start`; voxels outside the image hold `padding_value`.

    Args:
        image: tensor, array, or anything with a shape that gives arrays when sliced (memory maps, HDF5 data sets);
            nothing outside the patch is read.
        start: first voxel an axis; negative where the patch begins before the image.
        size: patch in voxels.
        padding_value: what lies outside the image.
        meta: entries added to the patch's meta data.

    Returns:
        (C, *size), contiguous, never sharing memory with `image`; a MetaTensor whose affine is the image's moved to
        the patch's first voxel, or a plain tensor where MONAI tracks no meta data.
    """
    # without its meta data: MetaTensor's bookkeeping at every step would cost more than copying a small patch
    source = image.as_tensor() if isinstance(image, MetaTensor) else image
    extents = tuple(source.shape[1:])
    if len(extents) != len(size):
        where = case_name(image) or "image"
        raise ShapeError(f"{where} must have a channel and {len(size)} spatial axes, found {tuple(source.shape)}")
    inside = tuple(slice(max(s, 0), min(s + n, extent)) for s, n, extent in zip(start, size, extents, strict=True))
    piece = _copy(source[(slice(None), *inside)])
    if tuple(piece.shape[1:]) != tuple(size):
        piece = _padded(piece, [max(-s, 0) for s in start], size, padding_value)
    if not get_track_meta():
        return piece
    patch = piece.as_subclass(MetaTensor)
    patch.copy_meta_from(image if isinstance(image, MetaTensor) else _without_meta(piece.ndim))
    patch.meta[MetaKeys.AFFINE] = _moved(patch.meta[MetaKeys.AFFINE], start)
    patch.meta.update(meta or {})
    return patch


@cache
def _without_meta(ndim: int) -> MetaTensor:
    """Any MetaTensor with MONAI's default meta data, which are slow to build anew for every patch."""
    return MetaTensor(torch.zeros((1,) * ndim))


def _moved(affine: torch.Tensor, start: Sequence[int]) -> torch.Tensor:
    """The affine of a grid that begins at voxel `start` of the affine's own grid."""
    out = np.array(affine.numpy(force=True), np.float64)  # on tensors of 16 numbers NumPy is several times faster
    out[:-1, -1] += out[:-1, : len(start)] @ start
    return torch.from_numpy(out)


def _padded(piece: torch.Tensor, before: Sequence[int], size: Sequence[int], padding_value: float) -> torch.Tensor:
    out = piece.new_full((piece.shape[0], *size), padding_value)
    out[(slice(None), *(slice(b, b + n) for b, n in zip(before, piece.shape[1:], strict=True)))] = piece
    return out


def _copy(view: Any) -> torch.Tensor:
    if isinstance(view, torch.Tensor):
        return view.clone(memory_format=torch.contiguous_format)
    # native byte order: torch reads no other, and NIfTI files mapped into memory may be big-endian
    return torch.from_numpy(np.array(view, dtype=view.dtype.newbyteorder("="), order="C", subok=False))
