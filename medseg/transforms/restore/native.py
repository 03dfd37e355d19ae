"""Restore logits on the model grid to labels on the scan's own grid, without holding classes × volume.

MONAI's `Invertd` resamples every class over the whole native volume before the argmax. But orientation and spacing only
reorder, flip and rescale axes. Linear interpolation therefore separates into one pass per axis, and labels can be
decided slab by slab. Grids that a rotation or a shear separates are interpolated voxel by voxel instead.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from math import prod
from typing import Any, Literal

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import MetaKeys
from torch.nn import functional as F

from medseg.errors import GeometryError
from medseg.transforms.restore.grid_map import composed_affine, map_grids
from medseg.transforms.restore.label_decision import CHUNK_VALUES, LabelDecision, LabelRestorer, Observer, apply_head
from medseg.transforms.restore.resample import INTERPOLATIONS, SeparableResampler

SHEARED_CHUNK_VOXELS = 1 << 20  # native voxels interpolated together by `restore_sheared`

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
    ) -> None:
        self.label_values = None if label_values is None else [int(v) for v in label_values]
        self.activation = activation
        self.interpolation = interpolation
        LabelDecision(label_values or [0], activation)  # checks the values before any work is done
        if interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation must be linear or cubic, found {interpolation!r}")

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
        decision = LabelDecision(range(count) if self.label_values is None else self.label_values, self.activation)
        decision.check(num_channels)
        return decision


class RestoreToNatived(MapTransform):
    """Dictionary form of `RestoreToNative`, for a bundle's postprocessing.

    Args:
        keys: the logits to restore.
        label_values, activation, interpolation: see `RestoreToNative`.
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
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        refs = [ref_key] * len(self.keys) if ref_key is None or isinstance(ref_key, str) else list(ref_key)
        if len(refs) != len(self.keys):
            raise ValueError(f"ref_key must be one key or {len(self.keys)}, one per key, found {len(refs)}")
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
    observers: Sequence[Observer] = (),
) -> torch.Tensor:
    """Restore logits (C, *model grid) to labels of the native shape, slab by slab.

    Args:
        logits: (C, *model grid).
        model_affine: voxel index to mm of the model grid.
        native_affine: voxel index to mm of the native grid.
        native_shape: its shape in voxels.
        decision: from logits to label values.
        interpolation: "linear" or "cubic"; a sheared grid is always interpolated linearly.
        observers: receive the logits of every native voxel.
    """
    decision.check(logits.shape[0])
    logits = logits.float()
    grid_map = map_grids(model_affine, logits.shape[1:], native_affine, native_shape)
    if grid_map is None:
        return restore_sheared(logits, model_affine, native_affine, native_shape, decision, observers=observers)
    resampler = SeparableResampler(grid_map, interpolation)
    labels = torch.empty(tuple(native_shape), dtype=decision.dtype, device=logits.device)
    block = logits.permute(0, *(axis + 1 for axis in resampler.axis_order))
    region = [slice(0, native_shape[axis]) for axis in resampler.native_axes]
    LabelRestorer(resampler, decision, observers=observers)(block, (0,) * len(region), region, labels)
    return labels


def restore_sheared(
    values: torch.Tensor,
    model_affine: Any,
    native_affine: Any,
    native_shape: Sequence[int],
    decision: LabelDecision,
    head_weight: torch.Tensor | None = None,
    head_bias: torch.Tensor | None = None,
    observers: Sequence[Observer] = (),
) -> torch.Tensor:
    """Restore labels by linear interpolation voxel by voxel, a few planes or rows at a time.

    Args:
        values: (K, *model grid) logits, or features if a head is given.
        model_affine: voxel index to mm of the model grid.
        native_affine: voxel index to mm of the native grid.
        native_shape: its shape in voxels.
        decision: from logits to label values.
        head_weight: (classes, K) of the head; None if the values are logits.
        head_bias: (classes,) of the head.
        observers: receive the logits of every native voxel.
    """
    decision.check(len(values) if head_weight is None else len(head_weight))
    model_shape = values.shape[1:]
    matrix = composed_affine(model_affine, native_affine, len(model_shape))
    labels = torch.empty(tuple(native_shape), dtype=decision.dtype, device=values.device)
    for region in _regions(native_shape, voxels_at_once(len(values), decision.num_channels)):
        grid = _sampling_grid(matrix, model_shape, region).to(values.device, values.dtype)
        sampled = F.grid_sample(values[None], grid[None], mode="bilinear", padding_mode="border", align_corners=True)[0]
        logits = sampled if head_weight is None else apply_head(sampled, head_weight, head_bias)
        winner, best = torch.empty_like(logits[0]), torch.empty_like(logits[0])
        for channel in range(len(logits)):
            decision.update(channel, logits[channel], winner, best)
        labels[region] = decision.labels_of(winner)
        for observer in observers:
            observer.observe(logits, region, range(len(region)))
    return labels


def sheared_bytes(num_values: int, num_classes: int, spatial_dims: int, is_observed: bool) -> int:
    """Return an upper bound in bytes of what `restore_sheared` allocates beside its arguments and its result.

    Args:
        num_values: channels of the values.
        num_classes: logits per voxel.
        spatial_dims: 2 or 3.
        is_observed: True if observers compute probabilities from the logits.
    """
    positions = 8 * (spatial_dims + 3) + 4 * spatial_dims  # computed in float64, kept in float32
    values = 4 * (num_values + num_classes * (4 if is_observed else 1) + 4)
    return voxels_at_once(num_values, num_classes) * (positions + values)


def voxels_at_once(num_values: int, num_classes: int) -> int:
    """Return how many native voxels `restore_sheared` interpolates together, so that their values stay few."""
    return max(1, min(SHEARED_CHUNK_VOXELS, CHUNK_VALUES // max(num_values, num_classes)))


def _regions(shape: Sequence[int], voxels: int) -> Iterator[tuple[slice, ...]]:
    """Cut a volume into planes across its first axis, and planes of more than `voxels` voxels into rows."""
    plane = prod(shape[1:])
    planes = max(1, voxels // plane)
    rows = shape[1] if plane <= voxels else max(1, voxels // prod(shape[2:]))
    for first in range(0, shape[0], planes):
        for row in range(0, shape[1], rows):
            part = slice(first, min(first + planes, shape[0])), slice(row, min(row + rows, shape[1]))
            yield (*part, *(slice(0, n) for n in shape[2:]))


def _sampling_grid(matrix: Any, model_shape: Sequence[int], region: Sequence[slice]) -> torch.Tensor:
    """Compute positions (*region, d) for grid_sample: −1…1 from the first to the last voxel centre, last axis first."""
    dims = len(region)
    index = [torch.arange(part.start, part.stop, dtype=torch.float64) for part in region]
    grid = torch.empty(*(len(i) for i in index), dims, dtype=torch.float64)
    for model_axis in range(dims):
        position = torch.full((1,) * dims, float(matrix[model_axis, dims]), dtype=torch.float64)
        for native_axis, i in enumerate(index):
            view = [1] * dims
            view[native_axis] = -1
            position = position + float(matrix[model_axis, native_axis]) * i.view(view)
        last = model_shape[model_axis] - 1
        grid[..., dims - 1 - model_axis] = 2 * position.clamp(0, last) / max(last, 1) - 1
    return grid


def _with_native_affine(meta: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add the identity as native affine to the metadata of pictures (PNG, TIFF), whose reader writes none."""
    if MetaKeys.ORIGINAL_AFFINE not in meta and set(meta) >= _PICTURE_KEYS:
        return {**meta, MetaKeys.ORIGINAL_AFFINE: torch.eye(4, dtype=torch.float64)}
    return meta


RestoreToNativeD = RestoreToNativeDict = RestoreToNatived
