"""Restore logits on the model grid to labels on the scan's own grid, without holding classes × volume.

MONAI's `Invertd` resamples every class over the whole native volume before the argmax. But orientation and spacing only
reorder, flip and rescale axes. Linear interpolation therefore separates into one pass per axis, and labels can be
decided slab by slab. Grids that a rotation or a shear separates are interpolated voxel by voxel instead.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import MetaKeys

from medseg.errors import GeometryError
from medseg.transforms.restore.label_decision import LabelDecision
from medseg.transforms.restore.restore_labels import restore_labels

RESTORING = ("logits", "probabilities", "labels")

_PICTURE_KEYS = {"format", "mode", "width", "height"}  # written by MONAI's PILReader and by no other reader


class RestoreToNative(Transform):
    """Restore logits on the model grid to a label map on the scan's native grid.

    The logits are interpolated at each native voxel centre (clamped at the border, as MONAI's Spacing does); then the
    label is decided. The work is done slab by slab. Beside the logits and the result it needs memory for a few million
    values.

    Args:
        label_values: value of each label in label maps, background first; None numbers the channels 0, 1, 2, ….
        activation: "softmax" for exclusive labels, "sigmoid" for overlapping regions.
        interpolation: "linear", or "cubic" (Catmull–Rom; sharper, takes twice the time).
        restoring: "logits" interpolates logits, "probabilities" the probabilities, and "labels" takes the label of the
            nearest voxel.

    Returns:
        (call) MetaTensor (1, *native shape) of integers with the native affine.

    Raises:
        ValueError: a parameter is outside its range.
    """

    def __init__(
        self,
        label_values: Sequence[int] | None = None,
        activation: Literal["softmax", "sigmoid"] = "softmax",
        interpolation: Literal["linear", "cubic"] = "linear",
        restoring: Literal["logits", "probabilities", "labels"] = "logits",
    ) -> None:
        self.label_values = None if label_values is None else [int(v) for v in label_values]
        self.activation = activation
        self.interpolation: Literal["linear", "cubic", "nearest"] = interpolation
        if restoring == "labels":
            self.interpolation = "nearest"
        self.restoring = restoring
        LabelDecision(label_values or [0], activation)  # checks the values before any work is done
        if interpolation not in ("linear", "cubic"):
            raise ValueError(f"interpolation must be linear or cubic, found {interpolation!r}")
        if restoring not in RESTORING:
            raise ValueError(f"restoring must be one of {', '.join(RESTORING)}, found {restoring!r}")

    def __call__(self, logits: torch.Tensor, meta: Mapping[str, Any] | None = None) -> torch.Tensor:
        """Restore one case.

        Args:
            logits: (C, *model grid), a MetaTensor whose affine is the model grid's.
            meta: the scan's metadata (`original_affine` and `spatial_shape`, as LoadImage writes them); the logits' own
                if None.

        Raises:
            GeometryError: the affine of the logits, or the scan's native affine or shape, is unknown.
            ShapeError: the number of channels does not fit the label values.
        """
        if not isinstance(logits, MetaTensor):
            raise GeometryError(
                "RestoreToNative needs logits with an affine (a MetaTensor), found a plain tensor; use an inferer that "
                "keeps the image's metadata, such as medseg.inference.SlidingWindowInferer"
            )
        known = _with_native_affine(logits.meta if meta is None else meta)
        missing = [key for key in (MetaKeys.ORIGINAL_AFFINE, MetaKeys.SPATIAL_SHAPE) if key not in known]
        if missing:
            raise GeometryError(
                f"RestoreToNative found no {str(missing[0])!r} in the metadata; load the scan with LoadImage, which "
                "writes it, or give ref_key"
            )
        dims = logits.ndim - 1
        native_affine = torch.as_tensor(known[MetaKeys.ORIGINAL_AFFINE], dtype=torch.float64)
        native_shape = [int(n) for n in torch.as_tensor(known[MetaKeys.SPATIAL_SHAPE]).flatten()[:dims]]
        labels = restore_labels(
            logits.as_tensor(), logits.affine, native_affine, native_shape, self._decision(logits.shape[0]),
            self.interpolation,
        )  # fmt: skip
        meta = {**known, MetaKeys.AFFINE: native_affine, MetaKeys.SPATIAL_SHAPE: torch.as_tensor(native_shape)}
        return MetaTensor(labels[None], meta=meta)

    def _decision(self, num_channels: int) -> LabelDecision:
        count = num_channels + (self.activation == "sigmoid")
        values = range(count) if self.label_values is None else self.label_values
        decision = LabelDecision(values, self.activation, self.restoring == "probabilities")
        decision.check(num_channels)
        return decision


class RestoreToNatived(MapTransform):
    """Dictionary form of `RestoreToNative`, for a bundle's postprocessing.

    Args:
        keys: the logits to restore.
        label_values, activation, interpolation, restoring: see `RestoreToNative`.
        ref_key: key of the image whose metadata describes the native grid, one for all keys or one per key; None takes
            the metadata of the logits.
        allow_missing_keys: skip keys that a case lacks.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_values: Sequence[int] | None = None,
        activation: Literal["softmax", "sigmoid"] = "softmax",
        interpolation: Literal["linear", "cubic"] = "linear",
        ref_key: str | Sequence[str] | None = None,
        allow_missing_keys: bool = False,
        restoring: Literal["logits", "probabilities", "labels"] = "logits",
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        refs = [ref_key] * len(self.keys) if ref_key is None or isinstance(ref_key, str) else list(ref_key)
        if len(refs) != len(self.keys):
            raise ValueError(f"ref_key must be one key or {len(self.keys)}, one per key, found {len(refs)}")
        self.ref_keys = refs
        self.restore = RestoreToNative(label_values, activation, interpolation, restoring)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key, ref_key in self.key_iterator(d, self.ref_keys):
            d[key] = self.restore(d[key], None if ref_key is None else d[ref_key].meta)
        return d


def _with_native_affine(meta: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add the identity as native affine to the metadata of pictures (PNG, TIFF), whose reader writes none."""
    if MetaKeys.ORIGINAL_AFFINE not in meta and set(meta) >= _PICTURE_KEYS:
        return {**meta, MetaKeys.ORIGINAL_AFFINE: torch.eye(4, dtype=torch.float64)}
    return meta


RestoreToNativeD = RestoreToNativeDict = RestoreToNatived
