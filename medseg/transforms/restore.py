"""From logits on the model grid to labels on the scan's own grid, without holding classes × volume.

MONAI's `Invertd` resamples every class over the whole native volume before the argmax. Orientation and spacing only
reorder, flip and rescale axes, so linear interpolation separates into one pass an axis, and labels can be decided a
slab at a time.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Literal

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import MetaKeys

from medseg.errors import GeometryError, ShapeError
from medseg.transforms.grid_map import map_grids
from medseg.transforms.resample import Resampler, SeparableResampler, ShearedResampler

SLAB_VOXELS = 1 << 20


class LabelDecision:
    """Turns logits into label values, one class at a time: no array of classes × voxels is needed.

    softmax: the label of the largest logit, the first of equals. sigmoid: the label of the last region whose
    logit is positive (probability above one half), background elsewhere; regions come in the order of the labels.

    Args:
        label_values: value of each label in label maps, background first.
        activation: "softmax" (one logit a label) or "sigmoid" (one logit a label but the background).
    """

    def __init__(self, label_values: Sequence[int], activation: Literal["softmax", "sigmoid"] = "softmax") -> None:
        if activation not in ("softmax", "sigmoid"):
            raise ValueError(f"activation must be softmax or sigmoid, found {activation!r}")
        self.label_values = [int(v) for v in label_values]
        self.activation = activation
        self.dtype = smallest_label_dtype(max(self.label_values))

    @property
    def num_channels(self) -> int:
        """How many logits a voxel the decision needs."""
        return len(self.label_values) - (self.activation == "sigmoid")

    def check(self, num_channels: int) -> None:
        """Raise ShapeError where the network has another number of channels."""
        if num_channels != self.num_channels:
            raise ShapeError(
                f"{len(self.label_values)} label values with {self.activation} need {self.num_channels} channels of "
                f"logits, found {num_channels}"
            )

    def start(self, shape: Sequence[int], device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The labels and the best logit so far, before any class was seen."""
        return torch.full(tuple(shape), self.label_values[0], dtype=self.dtype, device=device), None

    def see(
        self, state: tuple[torch.Tensor, torch.Tensor | None], channel: int, logits: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Take one class's logits (same shape as the labels) into account."""
        labels, best = state
        if self.activation == "sigmoid":
            labels.masked_fill_(logits > 0, self.label_values[channel + 1])
            return labels, None
        if best is None:
            return labels, logits.clone()
        labels.masked_fill_(logits > best, self.label_values[channel])
        return labels, torch.maximum(best, logits, out=best)


def smallest_label_dtype(largest: int) -> torch.dtype:
    """The smallest integer type that holds labels up to `largest`."""
    return torch.uint8 if largest < 2**8 else torch.int16 if largest < 2**15 else torch.int32


class RestoreToNative(Transform):
    """Logits on the model grid to a label map on the scan's native grid.

    Each native voxel centre is interpolated from the logits (clamped at the border, as MONAI's Spacing does), then
    the label is decided. Works slab by slab: beside the result and the logits it needs a few million voxels.

    Args:
        label_values: value of each label in label maps, background first; None numbers the channels 0, 1, 2, ….
        activation: "softmax" for exclusive labels, "sigmoid" for overlapping regions.
        interpolation: "linear", or "cubic" (Catmull–Rom; sharper, twice the time).
        native_affine_key: where the scan's own affine is kept in the logits' meta.
        native_shape_key: where its shape is kept.

    Returns:
        MetaTensor (1, *native shape) of integers with the native affine.
    """

    def __init__(
        self,
        label_values: Sequence[int] | None = None,
        activation: Literal["softmax", "sigmoid"] = "softmax",
        interpolation: Literal["linear", "cubic"] = "linear",
        native_affine_key: str = "original_affine",
        native_shape_key: str = "spatial_shape",
    ) -> None:
        self.label_values = None if label_values is None else [int(v) for v in label_values]
        self.activation = activation
        self.interpolation = interpolation
        self.native_affine_key = native_affine_key
        self.native_shape_key = native_shape_key

    def __call__(self, logits: torch.Tensor, meta: Mapping[str, Any] | None = None) -> torch.Tensor:
        """Restore one case.

        Args:
            logits: (C, *model grid); a MetaTensor whose affine is the model grid's.
            meta: the scan's metadata; by default the logits' own.

        Raises:
            GeometryError: the scan's native affine or shape is not known.
        """
        if not isinstance(logits, MetaTensor):
            raise GeometryError(
                "RestoreToNative needs logits that know their affine (a MetaTensor), found a plain tensor; use an "
                "inferer that keeps the image's metadata, such as medseg.inference.SlidingWindow"
            )
        known = logits.meta if meta is None else meta
        missing = [key for key in (self.native_affine_key, self.native_shape_key) if key not in known]
        if missing:
            raise GeometryError(
                f"RestoreToNative found no {missing[0]!r} in the metadata; LoadImage writes it, or give ref_key"
            )
        dims = logits.ndim - 1
        native_affine = torch.as_tensor(known[self.native_affine_key], dtype=torch.float64)
        native_shape = [int(n) for n in torch.as_tensor(known[self.native_shape_key]).flatten()[:dims]]
        labels = restore_labels(
            logits.as_tensor(), logits.affine, native_affine, native_shape, self._decision(logits.shape[0]),
            self.interpolation,
        )  # fmt: skip
        meta = {**known, MetaKeys.AFFINE: native_affine, MetaKeys.SPATIAL_SHAPE: torch.as_tensor(native_shape)}
        return MetaTensor(labels[None], meta=meta)

    def _decision(self, num_channels: int) -> LabelDecision:
        count = num_channels + (self.activation == "sigmoid")
        decision = LabelDecision(range(count) if self.label_values is None else self.label_values, self.activation)
        decision.check(num_channels)
        return decision


class RestoreToNatived(MapTransform):
    """Dictionary form of `RestoreToNative`, for a bundle's postprocessing.

    Args:
        keys: the logits to restore.
        ref_key: the image whose metadata tells the native grid, one for all keys or one a key; by default each
            logits' own metadata.
        label_values: see `RestoreToNative`.
        activation: see `RestoreToNative`.
        interpolation: see `RestoreToNative`.
        allow_missing_keys: do not raise when a key is absent.
    """

    def __init__(
        self,
        keys: KeysCollection,
        label_values: Sequence[int] | None = None,
        activation: Literal["softmax", "sigmoid"] = "softmax",
        interpolation: Literal["linear", "cubic"] = "linear",
        ref_key: str | Sequence[str] | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        refs = [ref_key] * len(self.keys) if ref_key is None or isinstance(ref_key, str) else list(ref_key)
        if len(refs) != len(self.keys):
            raise ValueError(f"ref_key needs one key or one a key ({len(self.keys)}), found {len(refs)}")
        self.ref_keys = refs
        self.restore = RestoreToNative(label_values, activation, interpolation)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key, ref_key in self.key_iterator(d, self.ref_keys):
            d[key] = self.restore(d[key], None if ref_key is None else d[ref_key].meta)
        return d


def restore_labels(
    logits: torch.Tensor,
    model_affine: Any,
    native_affine: Any,
    native_shape: Sequence[int],
    decision: LabelDecision,
    interpolation: Literal["linear", "cubic"] = "linear",
) -> torch.Tensor:
    """Labels (native shape) of logits (C, *model grid), decided a slab at a time."""
    resampler = resampler_between(model_affine, logits.shape[1:], native_affine, native_shape, interpolation)
    labels = torch.empty(tuple(native_shape), dtype=decision.dtype, device=logits.device)
    plane = max(1, labels.numel() // max(1, labels.shape[resampler.slab_axis]))
    thickness = max(1, SLAB_VOXELS // plane)
    origin = (0,) * (logits.ndim - 1)
    for start in range(0, labels.shape[resampler.slab_axis], thickness):
        region = [slice(0, n) for n in native_shape]
        region[resampler.slab_axis] = slice(start, min(start + thickness, labels.shape[resampler.slab_axis]))
        state = decision.start([r.stop - r.start for r in region], logits.device)
        for channel in range(logits.shape[0]):
            state = decision.see(state, channel, resampler(logits[channel : channel + 1], origin, region)[0])
        labels[tuple(region)] = state[0]
    return labels


def resampler_between(
    model_affine: Any,
    model_shape: Sequence[int],
    native_affine: Any,
    native_shape: Sequence[int],
    interpolation: Literal["linear", "cubic"] = "linear",
) -> Resampler:
    """The cheapest exact way from the model grid to the native grid."""
    grid_map = map_grids(model_affine, model_shape, native_affine, native_shape)
    if grid_map is None:
        return ShearedResampler(model_affine, model_shape, native_affine, native_shape)
    return SeparableResampler(grid_map, interpolation)


RestoreToNativeD = RestoreToNativeDict = RestoreToNatived
