"""Weights per voxel that teach a network the gaps between touching cells (Ronneberger et al. 2015, Eq. 2)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Transform
from monai.utils import convert_to_dst_type
from monai.utils.enums import TransformBackends
from scipy import ndimage

from medseg.errors import ShapeError
from medseg.transforms.meta_tensor import spacing_of

ClassWeights = Literal["balanced"] | Mapping[int, float] | None
Spacing = Sequence[float] | np.ndarray | None

_NEGLIGIBLE = 1e-5  # border terms below this fraction of w0 are left out


class BoundaryWeights(NamedTuple):
    """Weights and the target they belong to.

    Train with both: a heavy weight on a ridge that is foreground in the target would teach the network to merge cells.
    """

    weights: Any
    """float32 weights of the loss, one per voxel."""
    target: Any
    """The label map with the ridges between touching instances set to background; its dtype is the input's."""


def boundary_weight_map(
    label_map: np.ndarray,
    spacing: Spacing = None,
    w0: float = 10.0,
    sigma: float = 5.0,
    *,
    instance_map: np.ndarray | None = None,
    sigma_unit: Literal["voxel", "mm"] = "voxel",
    class_weights: ClassWeights = "balanced",
    ignore_label: int | None = None,
    background: int = 0,
    connectivity: int = 1,
) -> BoundaryWeights:
    """Compute the boundary weight map of a label map, and the ridged target it belongs to.

    w(x) = wc(l(x)) + [l(x) is background] · w0 · exp(−(d1(x) + d2(x))² / 2σ²)

    This is Eq. 2 of Ronneberger et al. 2015 (arXiv:1505.04597). d1 and d2 are the distances from x to the nearest and
    to the second-nearest instance, voxel centre to voxel centre. It differs from the paper in four points:

    - It works in any number of dimensions and uses the voxel spacing.
    - Touching instances are first separated by a ridge. Every instance voxel with a neighbour of another instance
      becomes background, in the map and in the target.
    - Ignored voxels have weight 0.
    - Border terms below 1e-5 · w0 may be left out, so that each distance transform covers one instance and its
      surroundings only.

    Args:
        label_map: integer classes of the spatial shape, in any number of dimensions. To start from an instance map
            alone, call `boundary_weight_map(instances > 0, instance_map=instances)`.
        spacing: voxel size in mm along each axis; None means isotropic voxels.
        w0: height of the border term, ≥ 0.
        sigma: width of the border term, > 0, in `sigma_unit`.
        instance_map: integers ≥ 0 of the same shape, where 0 is no instance. Only voxels with a foreground label
            count. None takes the connected components of each foreground class, which merges touching cells of one
            class.
        sigma_unit: "voxel" measures distances in units of the smallest spacing; "mm" needs `spacing`.
        class_weights: wc. "balanced" is N / (number of classes present · voxels of the class) over the labelled voxels
            of the ridged target, whose mean is 1. A mapping gives the weight per label (1 for labels it does not
            name). None is 1 for all labels.
        ignore_label: label of voxels with weight 0, which belong to no class and no instance.
        background: label of the background.
        connectivity: of the connected components: 1 joins voxels that share a face, `label_map.ndim` also those that
            share a corner.

    Returns:
        `BoundaryWeights(weights, target)`. With fewer than two instances the weights are the class weights.

    Raises:
        ShapeError: a map has no spatial axis or holds fractions, or the instance map's or spacing's shape is wrong.
        ValueError: a parameter is outside its range.
    """
    labels = _as_integers(label_map, "label map")
    sampling = _sampling(labels.ndim, spacing, sigma_unit)
    if w0 < 0 or sigma <= 0:
        raise ValueError(f"boundary weights: w0 must be >= 0 and sigma > 0, found w0={w0} and sigma={sigma}")
    labelled = np.ones(labels.shape, bool) if ignore_label is None else labels != ignore_label
    foreground = labelled & (labels != background)
    if instance_map is None:
        instances = _connected_components(labels, foreground, connectivity)
    else:
        instances = _checked_instances(instance_map, foreground)
    ridge = ridge_mask(instances)
    target = np.where(ridge, background, labels)
    weights = class_weight_map(target, labelled, class_weights)
    reach = sigma * np.sqrt(-2 * np.log(_NEGLIGIBLE))
    first, second = two_nearest_distances(np.where(ridge, 0, instances), sampling, reach)
    border = labelled & (target == background)
    weights[border] += w0 * np.exp(-((first[border] + second[border]) ** 2) / (2 * sigma**2))
    return BoundaryWeights(weights, target.astype(np.asarray(label_map).dtype, copy=False))


def two_nearest_distances(
    instances: np.ndarray, sampling: np.ndarray | Sequence[float], reach: float
) -> tuple[np.ndarray, np.ndarray]:
    """Measure the distance from every voxel to the nearest and to the second-nearest instance.

    Each instance needs a distance transform only inside its bounding box grown by `reach`. Because the box holds the
    whole instance, the distances in it are exact.

    Args:
        instances: integers ≥ 0 of any number of dimensions, where 0 is no instance.
        sampling: distance between neighbouring voxels along each axis, > 0.
        reach: largest distance of interest, in the unit of `sampling`.

    Returns:
        `(first, second)`, float32 of the same shape. A distance up to `reach` is the true one. Where the true distance
        is larger, or where there is no such instance, the value is larger than `reach` or infinite.
    """
    margin = np.minimum(np.ceil(reach / np.asarray(sampling)), instances.shape).astype(int)
    first = np.full(instances.shape, np.inf, np.float32)
    second = first.copy()
    for number, box in enumerate(ndimage.find_objects(instances), start=1):
        if box is None:
            continue
        window = tuple(slice(max(0, s.start - m), s.stop + m) for s, m in zip(box, margin, strict=True))
        distance = ndimage.distance_transform_edt(instances[window] != number, sampling).astype(np.float32)
        np.minimum(second[window], np.maximum(first[window], distance), out=second[window])
        np.minimum(first[window], distance, out=first[window])
    return first, second


def ridge_mask(instances: np.ndarray) -> np.ndarray:
    """Find the instance voxels that have a neighbour, sharing a face, edge or corner, of a different instance.

    Args:
        instances: integers ≥ 0 of any number of dimensions, where 0 is no instance.

    Returns:
        Boolean array of the same shape: a ridge one voxel wide on either side of every contact.
    """
    highest = ndimage.maximum_filter(instances, 3)
    # 0 must not win the minimum, so background counts as the largest number there
    lowest = ndimage.minimum_filter(np.where(instances == 0, instances.max(initial=0), instances), 3)
    ridge: np.ndarray = (instances > 0) & (highest != lowest)
    return ridge


def class_weight_map(labels: np.ndarray, labelled: np.ndarray, class_weights: ClassWeights) -> np.ndarray:
    """Compute the class term wc(l(x)), float32; 0 where `labelled` is False. See `boundary_weight_map`."""
    weights = labelled.astype(np.float32)
    if class_weights is None:
        return weights
    values, counts = np.unique(labels[labelled], return_counts=True)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        balanced = counts.sum() / (len(values) * count)
        weight = balanced if class_weights == "balanced" else class_weights.get(value, 1.0)
        weights[labelled & (labels == value)] = weight
    return weights


def _connected_components(labels: np.ndarray, foreground: np.ndarray, connectivity: int) -> np.ndarray:
    """Number the connected components of each label, so that touching cells of two labels stay two instances."""
    structure = ndimage.generate_binary_structure(labels.ndim, connectivity)
    instances = np.zeros(labels.shape, np.int32)
    num_instances = 0
    for value in np.unique(labels[foreground]):
        components, count = ndimage.label(labels == value, structure)
        instances[components > 0] = components[components > 0] + num_instances
        num_instances += count
    return instances


def _checked_instances(instance_map: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """Return the instance map as int32 with numbers of at most the number of voxels; 0 outside the foreground."""
    instances = _as_integers(instance_map, "instance map")
    if instances.shape != foreground.shape:
        raise ShapeError(
            f"boundary weights: the instance map must have the label map's shape {foreground.shape}, found "
            f"{instances.shape}; crop or resample both together"
        )
    if instances.min(initial=0) < 0:
        raise ValueError(f"boundary weights: instance numbers must be >= 0, found {instances.min()}; 0 is no instance")
    instances = np.where(foreground, instances, 0)
    if instances.max(initial=0) > instances.size:  # find_objects makes a list as long as the largest number
        values, numbers = np.unique(instances, return_inverse=True)
        instances = numbers.reshape(instances.shape) + int(values[0] != 0)
    return instances.astype(np.int32)


def _as_integers(array: np.ndarray, name: str) -> np.ndarray:
    array = np.asarray(array)
    if array.ndim == 0:
        raise ShapeError(f"boundary weights: the {name} must have at least one spatial axis, found a single number")
    if array.dtype.kind in "iu":
        return array
    integers = np.rint(array).astype(np.int64)
    if not np.array_equal(integers, array):
        raise ShapeError(f"boundary weights: the {name} must hold integers, found fractions; resample it with nearest")
    return integers


def _sampling(ndim: int, spacing: Spacing, sigma_unit: str) -> np.ndarray:
    """Return the distance between neighbouring voxels along each axis, in `sigma_unit`."""
    if sigma_unit not in ("voxel", "mm"):
        raise ValueError(f'boundary weights: sigma_unit must be "voxel" or "mm", found {sigma_unit!r}')
    if spacing is None:
        if sigma_unit == "mm":
            raise ValueError('boundary weights: sigma_unit="mm" needs the spacing in mm, found None')
        return np.ones(ndim)
    values = np.asarray(spacing, dtype=float)
    if values.shape != (ndim,) or not np.all(values > 0):
        raise ShapeError(f"boundary weights: spacing must be {ndim} positive numbers in mm, found {spacing}")
    return values if sigma_unit == "mm" else values / values.min()


class BoundaryWeightMap(Transform):
    """Compute `boundary_weight_map` of channel-first arrays.

    The transform is deterministic. Place it before the first random step, so that caching data sets compute it once
    per case.

    Args:
        spacing: voxel size in mm; None means isotropic voxels, "affine" reads it from the label's MetaTensor.
        w0, sigma, sigma_unit, class_weights, ignore_label, background, connectivity: see `boundary_weight_map`.

    Example:
        >>> weights, target = BoundaryWeightMap(sigma=5)(label)  # (1, H, W) each
    """

    backend: ClassVar[list[TransformBackends]] = [TransformBackends.NUMPY]

    def __init__(
        self,
        w0: float = 10.0,
        sigma: float = 5.0,
        spacing: Spacing | Literal["affine"] = None,
        sigma_unit: Literal["voxel", "mm"] = "voxel",
        class_weights: ClassWeights = "balanced",
        ignore_label: int | None = None,
        background: int = 0,
        connectivity: int = 1,
    ) -> None:
        self.spacing = spacing
        self.parameters: dict[str, Any] = {
            "w0": w0,
            "sigma": sigma,
            "sigma_unit": sigma_unit,
            "class_weights": class_weights,
            "ignore_label": ignore_label,
            "background": background,
            "connectivity": connectivity,
        }

    def __call__(self, label: Any, instances: Any = None) -> BoundaryWeights:
        """Compute the weights and the ridged target of one label map.

        Args:
            label: shape (1, *spatial): array, tensor or MetaTensor of integer classes.
            instances: shape (1, *spatial), or None to take the connected components.

        Returns:
            `BoundaryWeights` of the label's type and device, (1, *spatial) each; a MetaTensor keeps its affine.

        Raises:
            ShapeError: the label map has more than one channel, or is no MetaTensor although `spacing` is "affine".
        """
        spacing = self.spacing
        if isinstance(spacing, str):
            spacing = spacing_of(label)
            if spacing is None:
                raise ShapeError(
                    f'boundary weights: spacing="affine" needs a MetaTensor, found {type(label).__name__}; '
                    "give the spacing in mm"
                )
        instance_map = None if instances is None else _one_channel(instances, "instance map")
        label_map = _one_channel(label, "label map")
        result = boundary_weight_map(label_map, spacing, instance_map=instance_map, **self.parameters)
        return BoundaryWeights(*(convert_to_dst_type(a[None], label, dtype=a.dtype)[0] for a in result))


class BoundaryWeightMapd(MapTransform):
    """Dictionary form of `BoundaryWeightMap`: add the weights and replace the label map by the ridged target.

    Args:
        label_key: key of the (1, *spatial) label map, which is replaced by the ridged target.
        weight_key: key under which the weights are stored.
        instance_key: key of the instance map, which stays as it is; None takes the connected components.
        w0, sigma, spacing, sigma_unit, class_weights, ignore_label, background, connectivity: see `BoundaryWeightMap`.
        allow_missing_keys: return a sample without the label map (or the instance map) unchanged.

    Example:
        >>> BoundaryWeightMapd(label_key="label", weight_key="weight", instance_key="instances", spacing="affine")
    """

    backend = BoundaryWeightMap.backend

    def __init__(
        self,
        label_key: str = "label",
        weight_key: str = "weight",
        instance_key: str | None = None,
        w0: float = 10.0,
        sigma: float = 5.0,
        spacing: Spacing | Literal["affine"] = None,
        sigma_unit: Literal["voxel", "mm"] = "voxel",
        class_weights: ClassWeights = "balanced",
        ignore_label: int | None = None,
        background: int = 0,
        connectivity: int = 1,
        allow_missing_keys: bool = False,
    ) -> None:
        keys: KeysCollection = (label_key,) if instance_key is None else (label_key, instance_key)
        super().__init__(keys, allow_missing_keys)
        self.label_key, self.weight_key, self.instance_key = label_key, weight_key, instance_key
        self.boundary_weight_map = BoundaryWeightMap(
            w0, sigma, spacing, sigma_unit, class_weights, ignore_label, background, connectivity
        )

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        if len(list(self.key_iterator(d))) < len(self.keys):  # raises for a missing key unless that is allowed
            return d
        instances = None if self.instance_key is None else d[self.instance_key]
        d[self.weight_key], d[self.label_key] = self.boundary_weight_map(d[self.label_key], instances)
        return d


def _one_channel(array: Any, name: str) -> np.ndarray:
    if array.ndim < 2 or array.shape[0] != 1:
        raise ShapeError(
            f"boundary weights: the {name} must have shape (1, *spatial), found {tuple(array.shape)}; "
            "give integer classes, not one-hot, after EnsureChannelFirst"
        )
    return array[0].detach().cpu().numpy() if isinstance(array, torch.Tensor) else np.asarray(array[0])


BoundaryWeightMapD = BoundaryWeightMapDict = BoundaryWeightMapd
