"""From a scan on its own grid to the network's input on the model grid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite, prod

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Orientation, Spacing

from medseg.errors import VolumeError
from medseg.inference.scan import Scan
from medseg.plan import Plan
from medseg.transforms import NormalizeIntensityByModality
from medseg.transforms.restore.grid_map import AxisMap, GridMap, composed_affine, map_grids
from medseg.transforms.restore.resample import SeparableResampler

# Anatomical names of the axes, said outright because MONAI changes its default.
AXIS_LABELS = (("L", "R"), ("P", "A"), ("I", "S"))


def preprocessing(plan: Plan) -> Compose:
    """The deterministic steps between loading and the network: orientation, spacing, intensity.

    The same transforms, with the same arguments, stand in a bundle's inference.json behind LoadImaged and
    EnsureChannelFirstd.

    Returns:
        A callable on a MetaTensor (C, *native grid), giving a MetaTensor (C, *model grid) of float32.
    """
    steps: list = [Orientation(axcodes=plan.orientation, labels=AXIS_LABELS[: plan.spatial_dims])]
    if plan.spacing is not None:
        steps.append(Spacing(pixdim=plan.spacing, mode="bilinear", padding_mode="border"))
    steps.append(NormalizeIntensityByModality(plan.normalization))
    return Compose(steps)


# Voxels of the model grid interpolated at once.
SLAB_VOXELS = 1 << 22
# Positions closer to a voxel than this, in voxels, are rounding of the affines.
ROUNDING = 1e-9
# MONAI resamples nothing where affines differ by less (monai.data.utils.AFFINE_TOL).
SAME_AFFINE = 1e-3


@dataclass(frozen=True)
class ModelGrid:
    """The grid that Orientation and Spacing make of a scan's.

    Args:
        affine: voxel index to mm.
        shape: in voxels.
    """

    affine: np.ndarray
    shape: tuple[int, ...]


def model_grid(scan: Scan, plan: Plan) -> ModelGrid:
    """The model grid of a scan, as MONAI computes it, without touching a voxel."""
    native = scan.reference.grid
    proxy = MetaTensor(torch.zeros(1).expand(1, *native.shape), affine=torch.from_numpy(native.affine.copy()))
    oriented = Orientation(axcodes=plan.orientation, labels=AXIS_LABELS[: plan.spatial_dims], lazy=True)(proxy)
    affine, shape = oriented.peek_pending_affine(), tuple(oriented.peek_pending_shape())
    if plan.spacing is None:
        return ModelGrid(affine.numpy(), shape)
    spaced = Spacing(pixdim=plan.spacing, mode="bilinear", padding_mode="border", lazy=True)(
        MetaTensor(torch.zeros(1).expand(1, *shape), affine=affine)
    )
    new_affine, new_shape = spaced.peek_pending_affine(), tuple(int(n) for n in spaced.peek_pending_shape())
    if new_shape == shape and torch.allclose(new_affine, affine, rtol=0, atol=SAME_AFFINE):
        return ModelGrid(affine.numpy(), shape)
    return ModelGrid(new_affine.numpy(), new_shape)


def model_image(scan: Scan, plan: Plan) -> MetaTensor | None:
    """The scan on the model grid (C, *model grid) in float32, intensities as in the file.

    Returns:
        None where the grids are related by a shear (gantry tilt), which takes MONAI's own way.

    Raises:
        VolumeError: a value is beyond float32.
    """
    grid, native = model_grid(scan, plan), scan.reference.grid
    if map_grids(native.affine, native.shape, grid.affine, grid.shape) is None:
        return None
    resampler = SeparableResampler(exact_map(native.affine, native.shape, grid))
    image = torch.empty(len(scan.channels), *grid.shape)
    for channel, volume in zip(image, scan.channels, strict=True):
        _resample(volume.array, resampler, channel)
        if volume.array.dtype.itemsize > image.itemsize and not all(map(isfinite, torch.stack(channel.aminmax()))):
            raise VolumeError(f"{volume.name}: holds values beyond float32; rescale them first")
    return MetaTensor(image, affine=torch.from_numpy(grid.affine), meta={"filename_or_obj": scan.name})


def normalize_in_place(image: MetaTensor, plan: Plan) -> MetaTensor:
    """`NormalizeIntensityByModality` of an image (C, …) without a second one, channel by channel.

    Args:
        image: finite float32; changed.
    """
    plain, case = image.as_tensor(), str(image.meta.get("filename_or_obj", ""))
    if not all(map(isfinite, torch.stack(plain.aminmax()))):
        return NormalizeIntensityByModality(plan.normalization)(image)
    for channel, entry in zip(plain, plan.normalization, strict=True):
        scaling = NormalizeIntensityByModality([entry]).scalings(channel[None], case=case)[0]
        if isfinite(scaling.lower) or isfinite(scaling.upper):
            channel.clamp_(scaling.lower, scaling.upper)
        channel.sub_(scaling.shift).div_(scaling.scale)
    return image


def model_input(scan: Scan, plan: Plan) -> MetaTensor:
    """The network's input (C, *model grid): `preprocessing` up to the rounding of float32."""
    image = model_image(scan, plan)
    return preprocessing(plan)(scan.to_tensor()) if image is None else normalize_in_place(image, plan)


def exact_map(native_affine: np.ndarray, native_shape: tuple[int, ...], grid: ModelGrid) -> GridMap:
    """Where each voxel of the model grid lies on the scan's, not snapped to whole voxels as MONAI does not either."""
    snapped = map_grids(native_affine, native_shape, grid.affine, grid.shape)
    if snapped is None:
        raise ValueError("the grids are related by a shear")
    if all(axis.is_whole for axis in snapped.axes):
        return snapped
    dims = len(grid.shape)
    exact = composed_affine(native_affine, grid.affine, dims)
    axes = []
    for model_axis, axis in enumerate(snapped.axes):
        scale, offset = (_rounded(value) for value in (exact[axis.axis, model_axis], exact[axis.axis, dims]))
        axes.append(AxisMap(axis.axis, scale, offset, axis.model_size, axis.native_size))
    return GridMap(tuple(axes))


def slabs(resampler: SeparableResampler) -> Iterator[tuple[slice, slice]]:
    """The planes of the model grid that are interpolated together, and the scan's planes that they need."""
    first, *rest = resampler.axes
    plane = max(1, prod(axis.native_size for axis in rest), prod(axis.model_size for axis in rest))
    thickness = max(1, SLAB_VOXELS // plane)
    for start in range(0, first.native_size, thickness):
        part = slice(start, min(start + thickness, first.native_size))
        yield part, resampler.needed(0, part)


def _rounded(value: float) -> float:
    return float(round(value)) if abs(value - round(value)) < ROUNDING else float(value)


def _resample(array: np.ndarray, resampler: SeparableResampler, out: torch.Tensor) -> None:
    """Interpolate one channel from the scan's array onto the model grid, a slab at a time."""
    # To the resampler the file's grid is the "model" one it reads, and the model grid the "native" one it fills.
    source = array.transpose(resampler.axis_order)
    target = out.permute(*resampler.native_axes)
    rest = tuple(slice(0, n) for n in target.shape[1:])
    is_whole = all(axis.is_whole for axis in resampler.axes)
    for part, need in slabs(resampler):
        with np.errstate(over="ignore"):
            slab = source[need].astype(np.float32 if is_whole else np.float64, order="K")
        region = (part, *rest)
        planes = resampler.across(torch.from_numpy(slab)[None], (need.start, *([0] * len(rest))), region)
        target[part] = resampler.along(planes, region, part)[0]
