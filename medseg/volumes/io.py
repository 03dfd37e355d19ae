"""Read and write image files of every format that medseg knows."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from medseg.errors import GeometryError, VolumeError
from medseg.volumes import mgh, nifti
from medseg.volumes.formats import DICOM_SUFFIXES, SUFFIXES, check_readable, format_of, is_zarr, suffix_of
from medseg.volumes.grid import Grid
from medseg.volumes.streams import damage_as_volume_error
from medseg.volumes.volume import Volume

# Part of a step by which float32 may move a value that nibabel has scaled.
SLOPE_ROUNDING = 1e-3


def read_volume(
    path: Path | str, spatial_dims: int | None = None, allow_non_finite: bool = False, is_quiet: bool = False
) -> Volume:
    """Read one image in the axis order of its file.

    Args:
        path: a NIfTI, Analyze, MGH, NRRD, MetaImage, PNG, TIFF or JPEG file, a folder with one DICOM series, a DICOM
            file, which stands for its series, or the folder of an OME-Zarr image or Zarr array.
        spatial_dims: 2 or 3 to refuse images with another number of axes; None accepts both. A volume of one slice
            (x, y, 1) is a 2D image, too, and `write_volume` gives the slice its third axis back.
        allow_non_finite: keep NaN and infinite voxels instead of refusing them.
        is_quiet: do not issue the volume's notes as warnings.

    Returns:
        The volume. Its array has the stored type, or a floating-point type if the file carries a scale.

    Raises:
        VolumeError: missing, empty, damaged, truncated, not an image, RGB, complex, of the wrong dimension, or with a
            voxel that is not finite.
        GeometryError: an affine that is not finite or is singular.
    """
    path = Path(path)
    with damage_as_volume_error(path):
        volume = _read(path)
    volume = _with_dims(volume, spatial_dims)
    if not allow_non_finite:
        check_finite(volume)
    for note in () if is_quiet else volume.notes:
        warnings.warn(note, stacklevel=2)
    return volume


def read_label_map(path: Path | str, spatial_dims: int | None = None) -> Volume:
    """Read a label map as integers.

    Args:
        path: as in `read_volume`.
        spatial_dims: as in `read_volume`.

    Returns:
        The volume. An integer array keeps its type; other arrays get the smallest integer type that holds their values.

    Raises:
        VolumeError: as `read_volume`, and for values that are not whole numbers. Values of integers that the header
            scales by a slope below 1 are rounded if each lies within half a step of a whole number.
    """
    path = Path(path)
    if SUFFIXES.get(suffix_of(path)) in ("png", "tiff", "jpeg"):
        from medseg.volumes import png_tiff

        check_readable(path)
        with damage_as_volume_error(path):
            volume = png_tiff.read_labels(path)
        volume = _with_dims(volume, spatial_dims)
        check_finite(volume)
    else:
        volume = read_volume(path, spatial_dims=spatial_dims)
    return replace(volume, array=as_integers(volume.array, volume.name, label_step(volume)))


def read_colored_label_map(path: Path | str, spatial_dims: int | None = None) -> Volume:
    """Read a picture in which each colour is a label.

    Args:
        path: a PNG or TIFF file.
        spatial_dims: as in `read_volume`.

    Returns:
        The volume, with the value 65536·red + 256·green + blue in each pixel, int32.

    Raises:
        VolumeError: as `read_channels`; or not a PNG or TIFF file, which alone keep colours exactly.
    """
    path = Path(path)
    if SUFFIXES.get(suffix_of(path)) not in ("png", "tiff"):
        raise VolumeError(f"{path}: label maps of colours must be PNG or TIFF files; convert it")
    from medseg.volumes import png_tiff

    check_readable(path)
    with damage_as_volume_error(path):
        return _with_dims(png_tiff.read_colored_labels(path), spatial_dims)


def read_channels(
    path: Path | str, spatial_dims: int | None = None, allow_non_finite: bool = False, is_quiet: bool = False
) -> list[Volume]:
    """Read every channel of one image: the colours of a picture, the components of a voxel, or a fourth axis.

    Args:
        path: as in `read_volume`.
        spatial_dims: as in `read_volume`, of one channel.
        allow_non_finite: as in `read_volume`.
        is_quiet: do not issue the volume's notes as warnings.

    Returns:
        One volume per channel, all with the same grid, as `read_volume` returns them.

    Raises:
        VolumeError: as `read_volume`, but several channels are accepted.
        GeometryError: as `read_volume`.
    """
    path = Path(path)
    if is_dicom(path):
        return [read_volume(path, spatial_dims, allow_non_finite, is_quiet)]
    _check_readable(path)
    with damage_as_volume_error(path):
        volumes = _format_module(format_of(path)).read_channels(path)
    volumes = [_with_dims(volume, spatial_dims) for volume in volumes]
    for volume in () if allow_non_finite else volumes:
        check_finite(volume)
    for note in () if is_quiet else volumes[0].notes:
        warnings.warn(note, stacklevel=2)
    return volumes


def read_channel_grid(path: Path | str) -> tuple[Grid, int]:
    """Read the grid and the number of channels of an image file, as `read_grid`; raises as `read_channels`."""
    path = Path(path)
    if is_dicom(path):
        return read_grid(path), 1
    _check_readable(path)
    with damage_as_volume_error(path):
        return _format_module(format_of(path)).read_channel_grid(path)


def _with_dims(volume: Volume, spatial_dims: int | None) -> Volume:
    """Return an image with that number of axes; one slice of three axes becomes an image of two."""
    if spatial_dims == 2 and volume.grid.shape[2:] == (1,):
        grid = Grid(volume.grid.shape[:2], volume.grid.affine)
        volume = replace(volume, array=volume.array[..., 0], grid=grid, file_grid=volume.grid)
    if spatial_dims is not None and volume.grid.spatial_dims != spatial_dims:
        raise VolumeError(f"{volume.path}: has shape {volume.grid.shape} where {spatial_dims}D is expected")
    return volume


def read_grid(path: Path | str) -> Grid:
    """Read the grid of an image file, without its voxels where the format allows that; raises as `read_volume`."""
    path = Path(path)
    with damage_as_volume_error(path):
        if is_dicom(path):
            from medseg.volumes.dicom.series import read_dicom_grid

            return read_dicom_grid(path)
        _check_readable(path)
        return _format_module(format_of(path)).read_grid(path)


def read_header(path: Path | str) -> Any:
    """Read the nibabel header of a NIfTI, Analyze or MGH file; raises as `read_volume`.

    Returns:
        The header, or None for the other formats.
    """
    format = SUFFIXES.get(suffix_of(path))
    if format in ("nifti", "mgz"):
        return _format_module(format).read_header(Path(path))
    return None


def write_volume(path: Path | str, array: np.ndarray, like: Volume) -> Path:
    """Write an array with the geometry of another volume, atomically.

    Args:
        path: the output; its suffix chooses the format. An existing file is replaced.
        array: voxels in the axis order of `like`. Booleans become uint8, 64-bit integers the smallest type that holds
            them, and half precision becomes float32.
        like: the volume whose grid the file gets. The codes, the units and the exact affine of its header are kept if
            the output has the same format (NIfTI or MGH).

    Returns:
        The path.

    Raises:
        GeometryError: the array's shape differs from the grid, or the format cannot store the grid.
        VolumeError: the format cannot store the type, or the file cannot be written.
    """
    path = Path(path)
    array = np.asarray(array)
    module = _format_module(format_of(path))
    if array.shape != like.grid.shape:
        raise GeometryError(
            f"{path}: not written: array shape {array.shape} differs from {like.grid.shape} of {like.name}"
        )
    array, like = _in_file_grid(array, like, path)
    module.check_grid_fits(path, like)
    module.write(path, _storable(array, path), like)
    return path


def check_grid_fits(path: Path | str, like: Volume) -> None:
    """Check that `write_volume` can store the grid of `like` under this name, before there is anything to write.

    Raises:
        GeometryError, VolumeError: the format of the name cannot store it.
    """
    _, like = _in_file_grid(like.array, like, Path(path))
    _format_module(format_of(path)).check_grid_fits(Path(path), like)


def check_input(path: Path) -> None:
    """Check that there is something to read at a path, without looking at its content.

    Raises:
        VolumeError: no such file, one that is empty or may not be read, or a folder without DICOM images.
    """
    if is_dicom(path) and path.is_dir():
        from medseg.volumes.dicom.series_files import dicom_files

        dicom_files(path)
    elif is_zarr(path):
        read_grid(path)
    else:
        check_readable(path)


def check_finite(volume: Volume) -> None:
    """Raise VolumeError if any voxel is NaN or infinite."""
    array = volume.array
    if array.dtype.kind != "f":
        return
    # A finite sum proves that every voxel is finite, at a tenth of the memory. Only an overflow needs the second look.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.sum(array, dtype=np.float64)):
            return
    bad = int(array.size - np.count_nonzero(np.isfinite(array)))
    if bad:
        raise VolumeError(f"{volume.name}: {bad} of {array.size} voxels are NaN or infinite; replace them first")


def as_integers(array: np.ndarray, name: str, step: float = 0.0) -> np.ndarray:
    """Convert whole numbers to the smallest of uint8, int16, uint16, int32 and int64; keep integer arrays as they are.

    Args:
        array: the values.
        name: the file's name for messages.
        step: distance between the numbers that the file can store, where they are integers with a scale; else 0. With
            a step below 1, at most one whole number lies within half a step of a stored value.

    Raises:
        VolumeError: a value is not a whole number, or does not fit 64 bits.
    """
    if array.dtype.kind in "ui":
        return array
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    rounded = np.rint(array)
    # Slope and values are rounded to float32, so a value in the middle of a step may lie a little beyond it.
    tolerance = step * (0.5 + SLOPE_ROUNDING) if step < 1 else 0.0
    fractional = np.abs(array - rounded) > tolerance
    if fractional.any():
        example = array[fractional].flat[0]
        scale = f"the header scales stored integers by scl_slope {step!r}; " if step else ""
        raise VolumeError(
            f"{name}: a label map must hold whole numbers, found {example} ({int(fractional.sum())} such voxels); "
            f"{scale}save it without interpolation or scaling"
        )
    array = rounded
    low, high = float(array.min()), float(array.max())
    for dtype in (np.uint8, np.int16, np.uint16, np.int32, np.int64):
        # float(2**63 - 1) rounds up to 2**63, which int64 cannot hold: hence "below", not "at most".
        if np.iinfo(dtype).min <= low and high < float(np.iinfo(dtype).max) + (dtype is not np.int64):
            return array.astype(dtype)
    raise VolumeError(f"{name}: label values from {low:g} to {high:g} do not fit 64-bit integers")


def label_step(volume: Volume) -> float:
    """Return the slope of a NIfTI file of integers, which is the distance between the values it can hold; else 0."""
    if volume.format != "nifti" or volume.array.dtype.kind != "f" or volume.header.get_data_dtype().kind not in "ui":
        return 0.0
    return abs(float(volume.header["scl_slope"]))


def is_dicom(path: Path) -> bool:
    """Return whether a path is DICOM: a folder without an image suffix, or a file with its suffix or content."""
    if suffix_of(path) or not path.exists():
        return False
    if path.is_dir() or path.suffix.lower() in DICOM_SUFFIXES:
        return True
    from medseg.volumes.dicom.series_files import looks_like_dicom

    return path.is_file() and os.access(path, os.R_OK) and looks_like_dicom(path)


def holds_dicom(folder: Path) -> bool:
    """Return whether a file directly in a folder looks like DICOM."""
    from medseg.volumes.dicom.series_files import looks_like_dicom

    return any(looks_like_dicom(file) for file in folder.iterdir() if file.is_file() and not suffix_of(file))


def _read(path: Path) -> Volume:
    if is_dicom(path):
        from medseg.volumes.dicom.series import read_dicom

        return read_dicom(path)
    _check_readable(path)
    return _format_module(format_of(path)).read(path)


def _check_readable(path: Path) -> None:
    if not is_zarr(path):  # a store is a folder, whose files its own reader checks
        check_readable(path)


def _format_module(format: str) -> ModuleType:
    """Return the module that reads and writes a format. SimpleITK and Pillow are imported only when needed."""
    if format == "nifti":
        return nifti
    if format == "mgz":
        return mgh
    if format in ("nrrd", "mha"):
        from medseg.volumes import itk

        return itk
    if format == "zarr":
        from medseg.volumes import zarr_images

        return zarr_images
    from medseg.volumes import png_tiff

    return png_tiff


def _in_file_grid(array: np.ndarray, like: Volume, path: Path) -> tuple[np.ndarray, Volume]:
    """Give a slice the third axis back that it had in the file, except in a picture."""
    if like.file_grid is None or format_of(path) in ("png", "tiff", "jpeg"):
        return array, like
    grid = like.file_grid
    return array.reshape(grid.shape), replace(like, array=like.array.reshape(grid.shape), grid=grid, file_grid=None)


def _storable(array: np.ndarray, path: Path) -> np.ndarray:
    """Convert to a type that image formats share; values never change."""
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
