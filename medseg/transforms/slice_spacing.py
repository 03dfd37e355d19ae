"""Resample the slices of a volume within their plane."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.transforms import MapTransform, Spacing, Transform

from medseg.errors import ShapeError


class SliceSpacing(Transform):
    """Resample every slice along the last axis of a volume, as `monai.transforms.Spacing` resamples a 2D image.

    Nothing is interpolated between slices. On the whole volume of an oblique scan `Spacing` would sample at other
    positions within the voxels than on single slices, whose grids are not oblique. A 2D network is trained on single
    slices.

    Args:
        pixdim: spacing in mm along the first two axes.
        mode: interpolation, see `Spacing`.
        padding_mode: see `Spacing`.

    Raises:
        ShapeError: (call) the image is no MetaTensor (C, i, j, k).
    """

    def __init__(self, pixdim: Sequence[float], mode: str = "bilinear", padding_mode: str = "border") -> None:
        self.spacing = Spacing(pixdim, mode=mode, padding_mode=padding_mode)

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        """Resample (C, i, j, k); the result has the affine of its new grid."""
        if not isinstance(img, MetaTensor) or img.ndim != 4:
            raise ShapeError(
                f"SliceSpacing needs a volume (C, i, j, k) as a MetaTensor, found {type(img).__name__} "
                f"{tuple(img.shape)}"
            )
        channels, rows, columns, count = img.shape
        height, width = affine_to_spacing(img.affine, 3)[:2]
        straight = torch.diag(torch.tensor([float(height), float(width), 1.0, 1.0], dtype=torch.float64))
        slices = img.as_tensor().movedim(-1, 1).reshape(-1, rows, columns)  # as channels of one image
        done = self.spacing(MetaTensor(slices, affine=straight))
        volume = done.as_tensor().reshape(channels, count, *done.shape[1:]).movedim(1, -1)
        result = MetaTensor(volume.contiguous()).copy_meta_from(img)
        result.affine = img.affine.to(torch.float64) @ torch.linalg.inv(straight) @ done.affine.to(torch.float64)
        return result


class SliceSpacingd(MapTransform):
    """Dictionary form of `SliceSpacing`.

    Args:
        keys: volumes.
        pixdim, mode, padding_mode: see `SliceSpacing`.
        allow_missing_keys: skip keys that a case lacks.
    """

    def __init__(
        self,
        keys: KeysCollection,
        pixdim: Sequence[float],
        mode: str = "bilinear",
        padding_mode: str = "border",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.spacing = SliceSpacing(pixdim, mode, padding_mode)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.spacing(d[key])
        return d


SliceSpacingD = SliceSpacingDict = SliceSpacingd
