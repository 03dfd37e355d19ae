"""The boundary weight map of the U-Net: heavy weights where two cells come close, and the target those weights need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from medseg.errors import ShapeError
from medseg.transforms.class_weights import ClassWeights, class_weight_map, label_counts
from medseg.transforms.instance_ridges import connected_instances, ridge_mask
from medseg.transforms.nearest_instances import two_nearest_distances


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
