"""Writing an array on the grid of the image it belongs to."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medseg.errors import GeometryError, VolumeError
from medseg.volumes.formats import format_of
from medseg.volumes.nifti import write_nifti
from medseg.volumes.volume import Volume


def write_volume(path: Path | str, array: np.ndarray, like: Volume) -> Path:
    """Write ``array`` with the geometry of ``like``, whole or not at all.

    Args:
        path: the output; its suffix chooses the format. An existing file is replaced.
        array: voxels in the axis order of ``like``. Booleans become uint8, 64-bit integers the smallest type that holds
            them, half precision float32.
        like: the volume whose grid (and, NIfTI to NIfTI, header codes and units) the file gets.

    Returns:
        ``path``.

    Raises:
        GeometryError: the array's shape differs from the grid; nothing is written.
        VolumeError: the type cannot be stored, or the file cannot be written.
    """
    path = Path(path)
    format = format_of(path)
    array = np.asarray(array)
    if array.shape != like.grid.shape:
        raise GeometryError(
            f"{path}: not written: array shape {array.shape} differs from {like.grid.shape} of {like.name}"
        )
    if format == "nifti":
        write_nifti(path, storable(array, path), like)
        return path
    from medseg.volumes.itk import write_itk  # SimpleITK takes a while to import; NIfTI does not need it

    write_itk(path, storable(array, path), like, format)
    return path


def check_grid_fits(path: Path | str, like: Volume) -> None:
    """Raise, before there is anything to write, where `write_volume` would refuse the grid of ``like``.

    Raises:
        GeometryError, VolumeError: the format of the name cannot keep it.
    """
    format = format_of(path)
    if format != "nifti":
        from medseg.volumes import itk

        itk.check_grid_fits(Path(path), like, format)


def storable(array: np.ndarray, path: Path) -> np.ndarray:
    """The array in a type that image formats share; values never change."""
    if array.dtype == bool:
        return array.astype(np.uint8)
    if array.dtype == np.float16:
        return array.astype(np.float32)
    if array.dtype in (np.int64, np.uint64):
        low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
        for dtype in (np.uint8, np.int16, np.uint16, np.int32, np.uint32):
            if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
                return array.astype(dtype)
        raise VolumeError(
            f"{path}: not written: values from {low} to {high} need 64 bits, which image tools do not read"
        )
    if array.dtype.kind in "ui" or array.dtype in (np.float32, np.float64):
        return array
    raise VolumeError(f"{path}: not written: {array.dtype} voxels cannot be stored; convert them to numbers")
