"""Images that are in memory already, as volumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from medseg.errors import VolumeError
from medseg.volumes.grid import Grid
from medseg.volumes.read import check_finite, read_volume
from medseg.volumes.volume import Volume


def as_volume(source: Any) -> Volume:
    """A volume from whatever holds one image.

    Args:
        source: a path, a Volume, a nibabel image, a SimpleITK image, or (array, affine) with the array in the affine's
            axis order (i, j[, k]) and the affine RAS+ mm.

    Raises:
        VolumeError: something else, an image with more than three axes, RGB or complex voxels, or voxels not finite.
        GeometryError: the affine cannot be used or does not fit.
    """
    if isinstance(source, Volume):
        return source
    if isinstance(source, str | Path):
        return read_volume(source)
    volume = _from_memory(source)
    if volume.array.dtype.kind not in "buif":
        raise VolumeError(f"{volume.name}: has {volume.array.dtype} voxels where one real number a voxel is expected")
    check_finite(volume)
    return volume


def _from_memory(source: Any) -> Volume:
    if isinstance(source, nib.spatialimages.SpatialImage):
        return _from_nibabel(source)
    if isinstance(source, tuple) and len(source) == 2:
        array = np.asarray(source[0])
        return Volume(array, Grid(_shape(array.shape), source[1]))
    # Asked by name first, so that SimpleITK is imported only by those who use it.
    if type(source).__module__.startswith("SimpleITK"):
        from medseg.volumes.itk import from_simpleitk

        return from_simpleitk(source)
    raise VolumeError(
        f"cannot take a {type(source).__name__} as an image; "
        "give a path, a nibabel or SimpleITK image, or (array, affine)"
    )


def _from_nibabel(image: Any) -> Volume:
    array = np.asarray(image.dataobj)
    shape = _shape(array.shape)
    header = image.header if isinstance(image.header, nib.Nifti1Header) else None
    format = "memory" if header is None else "nifti"
    return Volume(array.reshape(shape), Grid(shape, image.affine), format=format, header=header)


def _shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) not in (2, 3):
        raise VolumeError(
            f"image in memory: has shape {shape} where 2 or 3 axes are expected; give one channel at a time"
        )
    return shape
