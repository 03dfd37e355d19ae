"""The boundary weight map as MONAI transforms."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data.meta_tensor import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_dst_type
from monai.utils.enums import TransformBackends
from scipy import ndimage

from medseg.errors import ShapeError
from medseg.transforms import nearest_instances
from medseg.transforms.array_cache import cached_arrays
from medseg.transforms.nearest_instances import two_nearest_distances

ClassWeights = Literal["balanced"] | Mapping[int, float] | None

_COUNTABLE_RANGE = 1 << 16


def label_counts(labels: np.ndarray) -> dict[int, int]:
    """Voxels of every label that occurs, in rising order; empty for an empty array."""
    if labels.size == 0:
        return {}
    low, high = int(labels.min()), int(labels.max())
    if high - low > _COUNTABLE_RANGE:
        values, counts = np.unique(labels, return_counts=True)
        return dict(zip(values.tolist(), counts.tolist(), strict=True))
    counts = np.bincount((labels - low).ravel())  # sorting a volume is many times slower
    return {low + int(value): int(counts[value]) for value in np.flatnonzero(counts)}


def class_weight_map(labels: np.ndarray, labelled: np.ndarray, class_weights: ClassWeights) -> np.ndarray:
    """The class term wc(l(x)) of the boundary weight map.

    "balanced" is N / (number of classes present · voxels of the class) over the labelled voxels: the inverse frequency,
    scaled to mean 1.

    Args:
        labels: integers of any dimension.
        labelled: boolean, same shape; other voxels weigh 0 and are not counted.
        class_weights: "balanced", a mapping from label to weight (1 for labels it does not name), or None for 1.

    Returns:
        float32, same shape; all 0 where nothing is labelled.
    """
    weights = labelled.astype(np.float32)
    if class_weights is None:
        return weights
    counts = label_counts(labels[labelled])
    total = sum(counts.values())
    for value, count in counts.items():
        weight = total / (len(counts) * count) if class_weights == "balanced" else class_weights.get(value, 1.0)
        weights[labelled & (labels == value)] = weight
    return weights


def connected_instances(label_map: np.ndarray, labels: np.ndarray, connectivity: int = 1) -> np.ndarray:
    """Number the connected components of each label, so that touching cells of two labels stay two instances.

    Args:
        label_map: integers of any dimension.
        labels: the values whose components count; all others become 0.
        connectivity: 1 joins voxels that share a face, `label_map.ndim` also those that share a corner.

    Returns:
        int32 of the same shape; 0 everywhere when no label occurs.
    """
    structure = ndimage.generate_binary_structure(label_map.ndim, connectivity)
    instances = np.zeros(label_map.shape, np.int32)
    found = 0
    for value in labels:
        components, count = ndimage.label(label_map == value, structure)
        instances += np.where(components > 0, components + found, 0).astype(np.int32)
        found += count
    return instances


def ridge_mask(instances: np.ndarray) -> np.ndarray:
    """True at every instance voxel with a neighbour (sharing a face, an edge or a corner) of a different instance.

    Args:
        instances: non-negative integers of any dimension, 0 is no instance.

    Returns:
        Boolean, same shape: a ridge one voxel wide on either side of every contact.
    """
    # The largest and the smallest non-zero number around a voxel differ where two instances meet. A box filter is
    # separable; zeros must not win the minimum, so they count as the largest integer there.
    highest = instances.copy()
    lowest = np.where(instances == 0, np.iinfo(instances.dtype).max, instances)
    for axis in range(instances.ndim):
        highest = _with_neighbours(highest, axis, np.maximum)
        lowest = _with_neighbours(lowest, axis, np.minimum)
    ridge: np.ndarray = (instances > 0) & (highest != lowest)
    return ridge


def _with_neighbours(values: np.ndarray, axis: int, extremum: np.ufunc) -> np.ndarray:
    ahead = [slice(None)] * values.ndim
    behind = [slice(None)] * values.ndim
    ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
    result = values.copy()
    extremum(result[tuple(behind)], values[tuple(ahead)], out=result[tuple(behind)])
    extremum(result[tuple(ahead)], values[tuple(behind)], out=result[tuple(ahead)])
    return result


class BoundaryWeights(NamedTuple):
    """Weights and the target they belong to: a heavy ridge on a foreground target would teach to merge cells."""

    weights: Any
    """float32, the voxel weights of the loss."""
    target: Any
    """The label map with the ridges between touching instances set to background; the dtype of the input."""


def boundary_weight_map(
    label_map: np.ndarray,
    spacing: Sequence[float] | np.ndarray | None = None,
    w0: float = 10.0,
    sigma: float = 5.0,
    *,
    instance_map: np.ndarray | None = None,
    sigma_unit: Literal["voxel", "mm"] = "voxel",
    class_weights: ClassWeights = "balanced",
    ignore_label: int | None = None,
    background: int = 0,
    connectivity: int = 1,
    tolerance: float = 1e-4,
) -> BoundaryWeights:
    """Voxel weights that teach a network the gaps between touching cells, and the ridged target they belong to.

    w(x) = wc(l(x)) + [l(x) is background] · w0 · exp(−(d1(x) + d2(x))² / 2σ²), Eq. 2 of Ronneberger et al. 2015,
    arXiv:1505.04597, where d1 and d2 are the distances from x to the nearest and second-nearest instance, voxel centre
    to voxel centre. Differs in: n dimensions with spacing; touching instances are first separated by a ridge (every
    instance voxel with a neighbour of another instance becomes background, here and in the target); voxels that are
    ignored weigh 0; terms below `tolerance` are 0.

    Args:
        label_map: integer classes, spatial shape only, any dimension. An instance map alone is given as
            `boundary_weight_map(instances > 0, instance_map=instances)`.
        spacing: voxel size in mm along each axis; None is isotropic.
        w0: height of the border term, ≥ 0.
        sigma: width of the border term, > 0: in voxels of the smallest spacing, or mm (`sigma_unit`).
        instance_map: integers, the same shape, 0 is no instance; only its voxels with a foreground label count. None
            takes the connected components of every foreground class, which merges touching cells of one class.
        sigma_unit: "voxel" measures distances in units of the smallest spacing, "mm" needs `spacing`.
        class_weights: "balanced" is wc = N / (classes present × N of the class) over the labelled voxels of the ridged
            target, whose mean is 1; a mapping gives wc a class (1 where it names none); None is 1.
        ignore_label: label of voxels with weight 0, in no class and no instance.
        background: label of the background.
        connectivity: of the components when there is no instance map: 1 = faces … ndim = corners.
        tolerance: border terms below this are left out, which bounds the distances searched; the largest error.

    Returns:
        `BoundaryWeights(weights, target)`. Without instances, or with one, the weights are the class weights.

    Raises:
        ShapeError: the label map has no voxel axes, holds fractions, or the instance map's or spacing's shape differs.
        ValueError: a parameter is outside its range.
    """
    labels = _as_integers(label_map, "label map")
    sampling = _sampling(labels.ndim, spacing, sigma_unit)
    if w0 < 0 or sigma <= 0 or tolerance <= 0:
        raise ValueError(
            "boundary weights: w0 must be >= 0, sigma and tolerance > 0; "
            f"found w0={w0}, sigma={sigma}, tolerance={tolerance}"
        )
    labelled = np.ones(labels.shape, bool) if ignore_label is None else labels != ignore_label
    foreground = labelled & (labels != background)
    if instance_map is None:
        values = np.array([v for v in label_counts(labels) if v not in (background, ignore_label)])
        instances = connected_instances(labels, values, connectivity)
    else:
        instances = _as_integers(instance_map, "instance map")
        if instances.shape != labels.shape:
            raise ShapeError(
                f"boundary weights: the instance map must have the label map's shape {labels.shape}, found "
                f"{instances.shape}; crop or resample both together"
            )
        if instances.min(initial=0) < 0:
            raise ValueError(
                f"boundary weights: instance numbers must be >= 0, found {instances.min()}; 0 is no instance"
            )
        instances = np.where(foreground, instances, 0)

    ridge = ridge_mask(instances)
    target = np.where(ridge, background, labels)
    weights = class_weight_map(target, labelled, class_weights)
    border = labelled & (target == background)
    if w0 > tolerance:
        reach = sigma * np.sqrt(2 * np.log(w0 / tolerance))
        first, second = two_nearest_distances(np.where(ridge, 0, instances), border, sampling, reach)
        weights[border] += w0 * np.exp(-((first + second) ** 2) / np.float32(2 * sigma**2))
    return BoundaryWeights(weights, target.astype(np.asarray(label_map).dtype, copy=False))


def _as_integers(array: np.ndarray, name: str) -> np.ndarray:
    array = np.asarray(array)
    if array.ndim == 0:
        raise ShapeError(f"boundary weights: the {name} must have at least one spatial axis, found a single number")
    if array.dtype == bool:
        return array.astype(np.int32)
    if array.dtype.kind in "iu":
        return array if array.dtype.itemsize >= 4 and array.dtype.kind == "i" else array.astype(np.int64)
    integers = np.rint(array).astype(np.int64)
    if not np.array_equal(integers, array):
        raise ShapeError(f"boundary weights: the {name} must hold integers, found fractions; resample it with nearest")
    return integers


def _sampling(ndim: int, spacing: Sequence[float] | np.ndarray | None, sigma_unit: str) -> np.ndarray:
    if sigma_unit not in ("voxel", "mm"):
        raise ValueError(f'boundary weights: sigma_unit must be "voxel" or "mm", found {sigma_unit!r}')
    if spacing is None:
        if sigma_unit == "mm":
            raise ValueError('boundary weights: sigma_unit="mm" needs the spacing in mm; found None')
        return np.ones(ndim)
    values = np.asarray(spacing, dtype=float)
    if values.shape != (ndim,) or not np.all(values > 0):
        raise ShapeError(f"boundary weights: spacing needs {ndim} positive numbers in mm, one an axis; found {spacing}")
    return values if sigma_unit == "mm" else values / values.min()


__all__ = [
    "BoundaryWeightMap",
    "BoundaryWeightMapD",
    "BoundaryWeightMapDict",
    "BoundaryWeightMapd",
    "BoundaryWeights",
    "boundary_weight_map",
]


_CODE = (sys.modules[__name__], nearest_instances)  # what a cached result depends on
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
