"""Simulate sparse annotation: keep the labels of some slices only."""

import zlib
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform

from medseg.errors import ShapeError
from medseg.transforms.meta_tensor import case_name, without_meta


class KeepLabelledSlices(Transform):
    """Keep the labels of some slices and mark all other voxels as not annotated.

    This makes a few annotated slices per volume (Çiçek et al. 2016, arXiv:1606.06650, Section 2) from a full
    annotation. Along each of `axes` with n slices, m = max(1, round(`fraction` · n)) slices keep their labels, at
    ⌊(k + u) n / m⌋ for k = 0 … m − 1. They are evenly spaced and the same at every call. With several axes a voxel is
    annotated if it lies in a kept slice of any axis. Give the loss the same `ignore_label`.

    `placement` chooses u. "middle" is u = ½. "by_case" takes u from the case's file name (CRC-32 / 2³²), so that the
    cases together show every level of the body. If all cases keep the same levels, the network never sees a label
    between them.

    Args:
        fraction: fraction of the slices along each axis that keep their labels, in (0, 1].
        axes: spatial axes perpendicular to the kept slices; (2,) means axial slices in RAS.
        placement: "middle" or "by_case".
        ignore_label: value of voxels without annotation, which must fit the label map's type. Voxels that already
            have this value keep it.

    Returns:
        (call) a new label map (1, …) of the input's type and dtype.

    Raises:
        ValueError: a parameter is outside its range; (call) `ignore_label` does not fit the label map's dtype, or
            "by_case" is used with a label map without a file name.
        ShapeError: (call) the label map lacks one of the axes.
    """

    def __init__(
        self,
        fraction: float,
        axes: Sequence[int] = (2,),
        placement: Literal["middle", "by_case"] = "middle",
        ignore_label: int = 255,
    ) -> None:
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction must be in (0, 1], found {fraction}")
        if not axes or min(axes) < 0:
            raise ValueError(f"axes must be one or more spatial axes from 0 on, found {tuple(axes)}")
        if placement not in ("middle", "by_case"):
            raise ValueError(f"placement must be middle or by_case, found {placement!r}")
        self.fraction = fraction
        self.axes = tuple(axes)
        self.placement = placement
        self.ignore_label = ignore_label

    def slices(self, extent: int, case: str = "") -> list[int]:
        """Return the slices that keep their labels along an axis of `extent` slices, for a case's file name."""
        kept = min(max(1, round(self.fraction * extent)), extent)
        offset = 2**31 if self.placement == "middle" else zlib.crc32(case.encode())  # of 2³²
        return [(k * 2**32 + offset) * extent // (kept * 2**32) for k in range(kept)]

    def __call__(self, label: Any) -> Any:
        spatial = tuple(label.shape[1:])
        if max(self.axes) >= len(spatial):
            where = case_name(label) or "label map"
            raise ShapeError(f"{where}: axes {self.axes} must be axes of the label map, found spatial shape {spatial}")
        plain = torch.as_tensor(without_meta(label))
        if not plain.is_floating_point() and self.ignore_label > torch.iinfo(plain.dtype).max:
            raise ValueError(f"ignore_label {self.ignore_label} does not fit {plain.dtype}")
        case = Path(case_name(label)).name  # the folder may differ between machines
        if self.placement == "by_case" and not case:
            raise ValueError('placement="by_case" needs label maps with a file name in their metadata, found none')
        known = torch.zeros(spatial, dtype=torch.bool, device=plain.device)
        for axis in self.axes:
            known.index_fill_(axis, torch.tensor(self.slices(spatial[axis], case), device=plain.device), True)
        sparse = plain.masked_fill(~known, self.ignore_label)
        if isinstance(label, MetaTensor):
            out = MetaTensor(sparse)
            out.copy_meta_from(label)
            return out
        return sparse if isinstance(label, torch.Tensor) else sparse.numpy()


class KeepLabelledSlicesd(MapTransform):
    """Dictionary form of `KeepLabelledSlices`; place it before `LabelVoxelIndexd`, so that crops centre on kept labels.

    Args:
        keys: label maps.
        fraction, axes, placement, ignore_label: see `KeepLabelledSlices`.
        allow_missing_keys: skip keys that a case lacks.
    """

    def __init__(
        self,
        keys: KeysCollection,
        fraction: float,
        axes: Sequence[int] = (2,),
        placement: Literal["middle", "by_case"] = "middle",
        ignore_label: int = 255,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.keeper = KeepLabelledSlices(fraction, axes, placement, ignore_label)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.keeper(d[key])
        return d


KeepLabelledSlicesD = KeepLabelledSlicesDict = KeepLabelledSlicesd
