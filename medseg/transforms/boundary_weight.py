"""The boundary weight map as MONAI transforms."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_dst_type
from monai.utils.enums import TransformBackends

from medseg.errors import ShapeError
from medseg.transforms import class_weights as class_weights_module
from medseg.transforms import instance_ridges, nearest_instances, weight_map
from medseg.transforms.array_cache import cached_arrays
from medseg.transforms.class_weights import ClassWeights
from medseg.transforms.weight_map import BoundaryWeights, boundary_weight_map

__all__ = [
    "BoundaryWeightMap",
    "BoundaryWeightMapD",
    "BoundaryWeightMapDict",
    "BoundaryWeightMapd",
    "BoundaryWeights",
    "boundary_weight_map",
]

_CODE = (weight_map, class_weights_module, instance_ridges, nearest_instances)  # what a cached result depends on
Spacing = Sequence[float] | np.ndarray | Literal["affine"] | None


class BoundaryWeightMap(Transform):
    """`boundary_weight_map` of channel-first arrays.

    Deterministic: put it among the cached steps of a training pipeline, before any crop.

    Args:
        spacing: voxel size in mm, None for isotropic, or "affine" to take it from the label's MetaTensor affine.
        w0, sigma, sigma_unit, class_weights, ignore_label, background, connectivity, tolerance: those of
            `boundary_weight_map`.
        cache_dir: folder that keeps results from one run to the next, or None. A file is found by the sha256 of the
            label map, the instance map, the spacing, the parameters and the code, so it cannot be stale.

    Example:
        >>> weights, target = BoundaryWeightMap(sigma=5)(label)  # (1, H, W) each
    """

    backend: ClassVar[list[TransformBackends]] = [TransformBackends.NUMPY]

    def __init__(
        self,
        w0: float = 10.0,
        sigma: float = 5.0,
        spacing: Spacing = None,
        sigma_unit: Literal["voxel", "mm"] = "voxel",
        class_weights: ClassWeights = "balanced",
        ignore_label: int | None = None,
        background: int = 0,
        connectivity: int = 1,
        tolerance: float = 1e-4,
        cache_dir: Path | str | None = None,
    ) -> None:
        self.spacing, self.cache_dir = spacing, cache_dir
        self.parameters: dict[str, Any] = {
            "w0": w0,
            "sigma": sigma,
            "sigma_unit": sigma_unit,
            "class_weights": class_weights,
            "ignore_label": ignore_label,
            "background": background,
            "connectivity": connectivity,
            "tolerance": tolerance,
        }

    def __call__(self, label: Any, instances: Any = None) -> BoundaryWeights:
        """Weights and ridged target of one label map.

        Args:
            label: shape `(1, *spatial)`, array, tensor or MetaTensor of integer classes.
            instances: shape `(1, *spatial)`, or None for connected components.

        Returns:
            `BoundaryWeights` of the label's kind and device, both `(1, *spatial)`; a MetaTensor keeps its affine.
        """
        inputs: dict[str, Any] = {
            "label_map": _one_channel(label, "label map"),
            "instance_map": None if instances is None else _one_channel(instances, "instance map"),
            "spacing": self._spacing_mm(label),
        }
        result = self._cached(inputs) if self.cache_dir else boundary_weight_map(**inputs, **self.parameters)
        return BoundaryWeights(*(convert_to_dst_type(a[None], label, dtype=a.dtype)[0] for a in result))

    def _cached(self, inputs: dict[str, Any]) -> Sequence[np.ndarray]:
        parameters = self.parameters
        if isinstance(parameters["class_weights"], Mapping):
            parameters = parameters | {"class_weights": sorted(parameters["class_weights"].items())}
        return cached_arrays(
            self.cache_dir or ".", inputs, parameters, _CODE, lambda: boundary_weight_map(**inputs, **self.parameters)
        )

    def _spacing_mm(self, label: Any) -> np.ndarray | None:
        if self.spacing is None:
            return None
        if not isinstance(self.spacing, str):
            return np.asarray(self.spacing, dtype=float)
        if not isinstance(label, MetaTensor):
            raise ShapeError(
                f'boundary weights: spacing="affine" needs a MetaTensor, found {type(label).__name__}; '
                "give the spacing in mm"
            )
        return np.asarray(label.pixdim, dtype=float)[: label.ndim - 1]


class BoundaryWeightMapd(MapTransform):
    """Dictionary form of `BoundaryWeightMap`: adds the weights and replaces the label map by the ridged target.

    Args:
        label_key: key of the `(1, *spatial)` label map; it is replaced by the ridged target.
        weight_key: key the weights are stored under.
        instance_key: key of the instance map, or None for connected components; it is left as it is.
        allow_missing_keys: leave a sample without the label (or without the instance map, if named) as it is.
        arguments: those of `BoundaryWeightMap`.

    Example:
        >>> BoundaryWeightMapd(label_key="label", weight_key="weight", instance_key="instances", spacing="affine")
    """

    backend = BoundaryWeightMap.backend

    def __init__(
        self,
        label_key: str = "label",
        weight_key: str = "weight",
        instance_key: str | None = None,
        allow_missing_keys: bool = False,
        **arguments: Any,
    ) -> None:
        keys: KeysCollection = (label_key,) if instance_key is None else (label_key, instance_key)
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.label_key, self.weight_key, self.instance_key = label_key, weight_key, instance_key
        self.boundary_weight_map = BoundaryWeightMap(**arguments)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        if len(list(self.key_iterator(d))) < len(self.keys):  # raises for an absent key unless that is allowed
            return d
        instances = None if self.instance_key is None else d[self.instance_key]
        d[self.weight_key], d[self.label_key] = self.boundary_weight_map(d[self.label_key], instances)
        return d


def _one_channel(array: Any, name: str) -> np.ndarray:
    if array.ndim < 2 or array.shape[0] != 1:
        raise ShapeError(
            f"boundary weights: the {name} must be channel-first with one channel, found shape {tuple(array.shape)}; "
            "give integer classes, not one-hot, after EnsureChannelFirst"
        )
    return array[0].detach().cpu().numpy() if isinstance(array, torch.Tensor) else np.asarray(array[0])


BoundaryWeightMapD = BoundaryWeightMapDict = BoundaryWeightMapd
