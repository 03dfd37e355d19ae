"""Sparse annotation: a label map of which only some slices are known."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform

from medseg.errors import ShapeError
from medseg.transforms.case import case_name


class KeepLabelledSlices(Transform):
    """Keep the labels of some slices and mark all other voxels as not annotated.

    The setting of Section 2 of Çiçek et al. 2016 (arXiv:1606.06650), a few annotated slices a volume, made from a full
    annotation. Along each of `axes` (of n slices) m = max(1, round(`fraction` · n)) slices stay, at ⌊(k + ½) n / m⌋
    for k = 0 … m − 1: evenly spaced, the same at every call. Along several axes a voxel stays that lies in a kept
    slice of any. Give the loss `ignore_label` with the same value.

    Args:
        fraction: of the slices along each axis that keep their labels, in (0, 1].
        axes: spatial axes the kept slices are perpendicular to; (2,) are axial slices in RAS.
        ignore_label: value of the voxels without annotation; it must fit the label map's type. Voxels that hold it
            already keep it.

    Returns:
        (call) a new label map (1, …) of the input's kind and type.

    Raises:
        ValueError: a setting cannot be used, or (call) `ignore_label` does not fit the label map's type.
        ShapeError: (call) an axis the label map lacks.
    """

    def __init__(self, fraction: float, axes: Sequence[int] = (2,), ignore_label: int = 255) -> None:
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction must be in (0, 1], found {fraction}")
        if not axes or min(axes) < 0:
            raise ValueError(f"axes must name spatial axes from 0 on, found {tuple(axes)}")
        self.fraction = fraction
        self.axes = tuple(axes)
        self.ignore_label = ignore_label

    def slices(self, extent: int) -> list[int]:
        """Which of an axis's `extent` slices stay; none of an empty axis."""
        kept = min(max(1, round(self.fraction * extent)), extent)
        return [int((2 * k + 1) * extent // (2 * kept)) for k in range(kept)]

    def __call__(self, label: Any) -> Any:
        spatial = tuple(label.shape[1:])
        if max(self.axes) >= len(spatial):
            raise ShapeError(f"{case_name(label) or 'label map'}: axes {self.axes} of a label map of shape {spatial}")
        plain = label.as_tensor() if isinstance(label, MetaTensor) else torch.as_tensor(label)
        if not plain.is_floating_point() and self.ignore_label > torch.iinfo(plain.dtype).max:
            raise ValueError(f"ignore_label {self.ignore_label} does not fit {plain.dtype}")
        known = torch.zeros(spatial, dtype=torch.bool, device=plain.device)
        for axis in self.axes:
            known.index_fill_(axis, torch.tensor(self.slices(spatial[axis]), device=plain.device), True)
        sparse = plain.masked_fill(~known, self.ignore_label)
        if isinstance(label, MetaTensor):
            out = MetaTensor(sparse)
            out.copy_meta_from(label)
            return out
        return sparse if isinstance(label, torch.Tensor) else sparse.numpy()


class KeepLabelledSlicesd(MapTransform):
    """Dictionary form of `KeepLabelledSlices`; place it before `LabelVoxelIndexd`, so crops centre on known labels.

    Args:
        keys: label maps.
        fraction, axes, ignore_label: see the array form.
        allow_missing_keys: skip keys a case lacks.
    """

    def __init__(
        self,
        keys: KeysCollection,
        fraction: float,
        axes: Sequence[int] = (2,),
        ignore_label: int = 255,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.keeper = KeepLabelledSlices(fraction, axes, ignore_label)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.keeper(d[key])
        return d


KeepLabelledSlicesD = KeepLabelledSlicesDict = KeepLabelledSlicesd
