"""Resample and normalise a scan: from its own grid to the network's input on the model grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import isfinite, prod
from typing import TYPE_CHECKING

import numpy as np
import torch
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from medseg.errors import VolumeError
from medseg.inference.scan import Scan
from medseg.plan import Plan
from medseg.transforms.normalization import ChannelNormalizer, contrast_offset
from medseg.transforms.restore.grid_map import AxisMap, GridMap, composed_affine, map_grids
from medseg.transforms.restore.monai_grid import axis_coordinates, sample_linearly, sampling_bytes
from medseg.transforms.restore.resample import SeparableResampler
from medseg.volumes import Grid

if TYPE_CHECKING:
    from monai.transforms import Compose

# MONAI warns that its default of these names will change.
AXIS_LABELS = (("L", "R"), ("P", "A"), ("I", "S"))
# Voxels of the model grid that are interpolated at once.
SLAB_VOXELS = 1 << 22
# Positions that are closer to a voxel than this, in voxels, differ from it by the rounding of affines only.
ROUNDING = 1e-9
# MONAI does not resample if affines differ by less (monai.data.utils.AFFINE_TOL).
SAME_AFFINE = 1e-3


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """The network's input.

    Args:
        values: (C, *model grid) float32.
        affine: 4×4, voxel index of the model grid to mm (RAS+).
    """

    values: torch.Tensor
    affine: np.ndarray


def preprocessing(plan: Plan) -> Compose:
    """Compose the deterministic steps between loading and the network: orientation, spacing, intensity.

    A bundle's inference.json holds the same transforms with the same arguments, after LoadImaged and
    EnsureChannelFirstd.

    Args:
        plan: orientation, spacing and normalisation.

    Returns:
        A callable that maps a MetaTensor (C, *native grid) to a MetaTensor (C, *model grid) of float32.
    """
    from monai.transforms import Compose, Orientation, Spacing  # takes seconds, and few scans need it

    from medseg.transforms import NormalizeIntensityByModality

    steps: list = [Orientation(axcodes=plan.orientation, labels=AXIS_LABELS[: plan.spatial_dims])]
    if plan.spacing is not None:
        steps.append(Spacing(pixdim=plan.spacing, mode="bilinear", padding_mode="border"))
    steps.append(NormalizeIntensityByModality(plan.normalization))
    return Compose(steps)


def model_input(scan: Scan, plan: Plan) -> PreparedImage:
    """Return the network's input: the result of `preprocessing`, up to the rounding of float32."""
    image = model_image(scan, plan)
    if image is None:
        return prepared_by_monai(scan, plan)
    normalize_in_place(image.values, plan, scan.name)
    return image


def prepared_by_monai(scan: Scan, plan: Plan) -> PreparedImage:
    """Return the result of `preprocessing`, which also resamples sheared scans."""
    image = preprocessing(plan)(scan.to_tensor())
    return PreparedImage(image.as_tensor(), image.affine.numpy())


def model_grid(native: Grid, plan: Plan) -> Grid:
    """Return the grid that MONAI's Orientation and Spacing make of a scan's grid."""
    dims = native.spatial_dims
    labels = AXIS_LABELS[: plan.spatial_dims]
    source = io_orientation(_leading(native.affine, dims))
    turn = ornt_transform(source, axcodes2ornt(plan.orientation[:dims], labels=labels))
    affine = native.affine @ _in_three_dimensions(inv_ornt_aff(turn, native.shape))
    shape = tuple(native.shape[axis] for axis in np.argsort(turn[:, 0]))
    if plan.spacing is None:
        return Grid(shape, affine)
    oriented = _leading(affine, dims)
    found = np.linalg.norm(oriented[:dims, :dims], axis=0)
    spacing = np.where(np.abs(found - plan.spacing) <= SAME_AFFINE, found, plan.spacing)
    spaced, new_shape = _respaced(oriented, shape, spacing)
    new_affine = affine @ _in_three_dimensions(np.linalg.solve(oriented, spaced))
    if new_shape == shape and np.allclose(new_affine, affine, rtol=0, atol=SAME_AFFINE):
        return Grid(shape, affine)
    return Grid(new_shape, new_affine)


def _respaced(affine: np.ndarray, shape: Sequence[int], spacing: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return the affine and the shape of a grid with another spacing and the same directions, shear removed.

    This is the grid of MONAI's Spacing: `zoom_affine` and `compute_shape_offset` in monai.data.utils.
    """
    dims, linear = len(shape), affine[:-1, :-1]
    upper = np.linalg.cholesky(linear.T @ linear).T
    new_affine = np.eye(dims + 1)
    new_affine[:-1, :-1] = linear @ np.linalg.inv(upper) @ np.diag(spacing)
    corners = np.array(list(product(*((0.0, size - 1.0) for size in shape)))).T
    corners = np.concatenate((corners, np.ones((1, 2**dims))))
    reached = (np.linalg.solve(new_affine, affine) @ corners)[:-1]
    new_shape = np.round(np.ptp(reached, axis=1) + 1).astype(int)
    offset = affine[:-1, :-1] @ (np.array(shape) / 2) + affine[:-1, -1] - new_affine[:-1, :-1] @ (new_shape / 2)
    for number in range(corners.shape[1]):
        if np.allclose((reached - reached[:, number : number + 1]).min(axis=1), 0, rtol=SAME_AFFINE):
            offset = (affine @ corners)[:-1, number]
            break
    new_affine[:-1, -1] = offset
    return new_affine, tuple(int(size) for size in new_shape)


def _leading(affine: np.ndarray, dims: int) -> np.ndarray:
    """Return the affine (dims + 1, dims + 1) of the first axes."""
    keep = [*range(dims), 3]
    return affine[np.ix_(keep, keep)]


def _in_three_dimensions(affine: np.ndarray) -> np.ndarray:
    """Return a 4×4 affine that leaves axes alone which the given one does not have."""
    full, dims = np.eye(4), len(affine) - 1
    keep = [*range(dims), 3]
    full[np.ix_(keep, keep)] = affine
    return full


def model_image(scan: Scan, plan: Plan) -> PreparedImage | None:
    """Return the scan on the model grid in float32, with the intensities of the file.

    A large offset is removed if the plan's normalisation does not depend on it; see `contrast_offset`.

    Returns:
        None if the grids are related by a shear (gantry tilt), for which MONAI's own transforms must be used.

    Raises:
        VolumeError: a value exceeds the range of float32.
    """
    native = scan.reference.grid
    needs_rounding = plan.spacing is not None and (plan.restoring == "labels" or tells_zeros_apart(plan))
    grid = _monai_grid(native, plan) if needs_rounding else model_grid(native, plan)
    if map_grids(native.affine, native.shape, grid.affine, grid.shape) is None:
        return None
    resampler = SeparableResampler(exact_map(native, grid))
    image = torch.empty(len(scan.channels), *grid.shape)
    for channel, volume, entry in zip(image, scan.channels, plan.normalization, strict=True):
        # Air is recognised by the intensities of the file.
        offset = 0.0 if plan.air_below is not None else contrast_offset(volume.array, entry, volume.name)
        if tells_zeros_apart(plan) and not _is_whole(resampler):
            _resample_as_monai(volume.array, native, grid, plan, channel)
        else:
            _resample(volume.array, resampler, channel, offset)
        if volume.array.dtype.itemsize > image.itemsize and not all(map(isfinite, torch.stack(channel.aminmax()))):
            raise VolumeError(f"{volume.name}: holds values beyond the range of float32; rescale them first")
    return PreparedImage(image, grid.affine)


def tells_zeros_apart(plan: Plan) -> bool:
    """Return True if the normalisation leaves voxels unchanged that are exactly zero, so that rounding matters."""
    entries = [step for entry in plan.normalization for step in (entry, *entry.get("steps", ()))]
    return any(entry.get("outside") == "unchanged" for entry in entries)


def _monai_grid(native: Grid, plan: Plan) -> Grid:
    """Return the grid of `model_grid` with the last bits of MONAI's, without touching a voxel."""
    from monai.data import MetaTensor
    from monai.transforms import Orientation, Spacing

    proxy = MetaTensor(torch.zeros(1).expand(1, *native.shape), affine=torch.from_numpy(native.affine.copy()))
    oriented = Orientation(axcodes=plan.orientation, labels=AXIS_LABELS[: plan.spatial_dims], lazy=True)(proxy)
    affine, shape = oriented.peek_pending_affine(), tuple(int(n) for n in oriented.peek_pending_shape())
    proxy = MetaTensor(torch.zeros(1).expand(1, *shape), affine=affine)
    spaced = Spacing(pixdim=plan.spacing, mode="bilinear", padding_mode="border", lazy=True)(proxy)
    new_affine, new_shape = spaced.peek_pending_affine(), tuple(int(n) for n in spaced.peek_pending_shape())
    if new_shape == shape and torch.allclose(new_affine, affine, rtol=0, atol=SAME_AFFINE):
        return Grid(shape, affine.numpy())
    return Grid(new_shape, new_affine.numpy())


def _resample_as_monai(array: np.ndarray, native: Grid, model: Grid, plan: Plan, out: torch.Tensor) -> None:
    """Resample a channel bit by bit as Orientation and Spacing do it."""
    from monai.data import MetaTensor
    from monai.transforms import Orientation

    values = torch.from_numpy(array.astype(np.float32, order="C"))[None]
    oriented = Orientation(axcodes=plan.orientation, labels=AXIS_LABELS[: plan.spatial_dims])(
        MetaTensor(values, affine=torch.from_numpy(native.affine.copy()))
    )
    coordinates = axis_coordinates(oriented.affine, oriented.shape[1:], model.affine, model.shape)
    sample_linearly(oriented.as_tensor()[0], coordinates, out)


def normalize_in_place(image: torch.Tensor, plan: Plan, case: str) -> None:
    """Normalise an image (C, …) channel by channel, without a second image in memory.

    Args:
        image: float32; changed.
        plan: normalisation of each channel.
        case: name of the scan in messages.
    """
    if not all(map(isfinite, torch.stack(image.aminmax()))):
        image.copy_(ChannelNormalizer(plan.normalization).normalized(image, case=case)[0])
        return
    for channel, entry in zip(image, plan.normalization, strict=True):
        scaling = ChannelNormalizer([entry]).scalings(channel[None], case=case)[0]
        if isfinite(scaling.lower) or isfinite(scaling.upper):
            channel.clamp_(scaling.lower, scaling.upper)
        scaling.apply(channel, out=channel)


def preprocessing_bytes(native: Grid, model: Grid, plan: Plan) -> int:
    """Estimate the memory that a scan's preprocessing takes, with the image that it returns.

    Args:
        native: the scan's grid.
        model: the model grid; see `model_grid`.
        plan: channels and normalisation.
    """
    float32, float64, channels = 4, 8, plan.in_channels
    native_size, model_size = prod(native.shape), prod(model.shape)
    if map_grids(native.affine, native.shape, model.affine, model.shape) is None:
        # MONAI's transforms copy the whole image, and resample it in float64 with a position per voxel.
        resampling = float64 * (channels * native_size + (2 * channels + 2 * len(model.shape)) * model_size)
        resampling += float32 * channels * model_size
        return 2 * float32 * channels * native_size + max(resampling, float32 * 3 * (channels + 1) * model_size)
    resampler = SeparableResampler(exact_map(native, model))
    largest = max(_slab_voxels(resampler, part, need) for part, need in _slabs(resampler))
    slab = (float32 if _is_whole(resampler) else float64) * largest
    if tells_zeros_apart(plan) and not _is_whole(resampler):
        slab = 2 * float32 * native_size + sampling_bytes(native.shape, model.shape)
    entries = [step for entry in plan.normalization for step in (entry, *entry.get("steps", ()))]
    copies = 2 * any(entry["scheme"] == "percentile" for entry in entries)  # sorted values
    copies += any(entry.get("foreground") == "nonzero" for entry in entries)
    copies += any(entry["scheme"] == "sequence" for entry in entries)
    statistics = model_size * (1 + float32 * copies)  # with a mask
    return float32 * channels * model_size + max(statistics, slab)


def _slab_voxels(resampler: SeparableResampler, part: slice, need: slice) -> int:
    """Return how many voxels exist at most while one slab is interpolated, one axis after the other."""
    given = [need.stop - need.start, *(axis.model_size for axis in resampler.axes[1:])]
    wanted = [part.stop - part.start, *(axis.native_size for axis in resampler.axes[1:])]
    if _is_whole(resampler):
        return 3 * prod(given)  # as read, and before and after reversing an axis
    sizes = [prod(given[:axis]) * prod(wanted[axis:]) for axis in reversed(range(len(given) + 1))]
    # The slab as read stays until the end. A pass holds its input, its result and one more tap of every voxel.
    return sizes[0] + max(2 * after + before for before, after in pairwise([0, *sizes[1:]]))


def exact_map(native: Grid, model: Grid) -> GridMap:
    """Return where each voxel of the model grid lies on the scan's grid, not rounded, as in MONAI."""
    snapped = map_grids(native.affine, native.shape, model.affine, model.shape)
    if snapped is None:
        raise ValueError("the grids are related by a shear")
    if all(axis.is_whole for axis in snapped.axes):
        return snapped
    dims = len(model.shape)
    exact = composed_affine(native.affine, model.affine, dims)
    axes = []
    for model_axis, axis in enumerate(snapped.axes):
        scale, offset = (_rounded(value) for value in (exact[axis.axis, model_axis], exact[axis.axis, dims]))
        axes.append(AxisMap(axis.axis, scale, offset, axis.model_size, axis.native_size))
    return GridMap(tuple(axes))


def _rounded(value: float) -> float:
    return float(round(value)) if abs(value - round(value)) < ROUNDING else float(value)


# The resampler is used in the opposite direction here: its "model" grid is the scan's grid, from which it reads, and
# its "native" grid is the model grid, which it fills.


def _slabs(resampler: SeparableResampler) -> Iterator[tuple[slice, slice]]:
    """Yield the planes of the model grid that are interpolated together, and the planes of the scan that they need."""
    first, *rest = resampler.axes
    plane = max(1, prod(axis.native_size for axis in rest), prod(axis.model_size for axis in rest))
    thickness = max(1, SLAB_VOXELS // plane)
    for start in range(0, first.native_size, thickness):
        part = slice(start, min(start + thickness, first.native_size))
        yield part, resampler.needed(0, part)


def _is_whole(resampler: SeparableResampler) -> bool:
    return all(axis.is_whole for axis in resampler.axes)


def _resample(array: np.ndarray, resampler: SeparableResampler, out: torch.Tensor, offset: float = 0.0) -> None:
    """Interpolate one channel from the scan's array, less an offset, onto the model grid, slab by slab."""
    source = array.transpose(resampler.axis_order)
    target = out.permute(*resampler.native_axes)
    rest: Sequence[slice] = tuple(slice(0, n) for n in target.shape[1:])
    for part, need in _slabs(resampler):
        with np.errstate(over="ignore"):
            dtype = np.float32 if _is_whole(resampler) else np.float64
            slab = source[need].astype(dtype if not offset else np.float64, order="K")
            if offset:
                slab = np.subtract(slab, offset, out=slab).astype(dtype, order="K", copy=False)
        region = (part, *rest)
        planes = resampler.across(torch.from_numpy(slab)[None], (need.start, *([0] * len(rest))), region)
        target[part] = resampler.along(planes, region, part)[0]
