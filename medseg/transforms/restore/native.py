"""From logits on the model grid to labels on the scan's own grid, without holding classes × volume.

MONAI's `Invertd` resamples every class over the whole native volume before the argmax. Orientation and spacing only
reorder, flip and rescale axes, so linear interpolation separates into one pass an axis, and labels can be decided a
slab at a time.
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

CHUNK_VOXELS = 1 << 20


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
    """Labels (native shape) by linear interpolation voxel by voxel, a few planes or rows at a time.

    Args:
        values: (K, *model grid) logits, or features that the head is still to be applied to.
        model_affine: voxel index to mm of the model grid.
        native_affine: voxel index to mm of the native grid.
        native_shape: its shape.
        decision: from logits to label values.
        head_weight: (classes, K) of the head; None where the values are logits.
        head_bias: (classes,) of the head.
        observers: see all logits of every native voxel.
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


def voxels_at_once(num_values: int, num_classes: int) -> int:
    """Native voxels that are interpolated together: few enough that all their values stay small."""
    return max(1, min(CHUNK_VOXELS, CHUNK_VALUES // max(num_values, num_classes)))


def _regions(shape: Sequence[int], voxels: int) -> Iterator[tuple[slice, ...]]:
    """Cut a volume into planes across its first axis, and planes that are larger than wanted into rows."""
    plane = prod(shape[1:])
    planes = max(1, voxels // plane)
    rows = shape[1] if plane <= voxels else max(1, voxels // prod(shape[2:]))
    for first in range(0, shape[0], planes):
        for row in range(0, shape[1], rows):
            begun = slice(first, min(first + planes, shape[0])), slice(row, min(row + rows, shape[1]))
            yield (*begun, *(slice(0, n) for n in shape[2:]))


def _sampling_grid(matrix: Any, model_shape: Sequence[int], region: Sequence[slice]) -> torch.Tensor:
    """Positions (*region, d) for grid_sample: −1…1 between the first and last voxel centres, the fast axis first."""
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


_PICTURE = {"format", "mode", "width", "height"}  # what MONAI's PILReader writes, and no other reader


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
        LabelDecision(label_values or [0], activation)  # refuse wrong values before any work is done
        if interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation must be linear or cubic, found {interpolation!r}")

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
                "inferer that keeps the image's metadata, such as medseg.inference.SlidingWindowInferer"
            )
        known = _with_native_affine(logits.meta if meta is None else meta, self.native_affine_key)
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


def _with_native_affine(meta: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The metadata; of pictures (PNG, TIFF), which MONAI reads through PIL, with the identity that PIL's stands for."""
    return {**meta, key: torch.eye(4, dtype=torch.float64)} if key not in meta and set(meta) >= _PICTURE else meta


def restore_labels(
    logits: torch.Tensor,
    model_affine: Any,
    native_affine: Any,
    native_shape: Sequence[int],
    decision: LabelDecision,
    interpolation: Literal["linear", "cubic"] = "linear",
) -> torch.Tensor:
    """Labels (native shape) of logits (C, *model grid), decided a slab at a time."""
    decision.check(logits.shape[0])
    logits = logits.float()
    grid_map = map_grids(model_affine, logits.shape[1:], native_affine, native_shape)
    if grid_map is None:
        return restore_sheared(logits, model_affine, native_affine, native_shape, decision)
    resampler = SeparableResampler(grid_map, interpolation)
    labels = torch.empty(tuple(native_shape), dtype=decision.dtype, device=logits.device)
    block = logits.permute(0, *(axis + 1 for axis in resampler.axis_order))
    region = [slice(0, native_shape[axis]) for axis in resampler.native_axes]
    LabelRestorer(resampler, decision)(block, (0,) * len(region), region, labels)
    return labels


RestoreToNativeD = RestoreToNativeDict = RestoreToNatived
