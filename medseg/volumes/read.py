"""Reading an image file of any known format into a Volume."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from medseg.errors import VolumeError
from medseg.volumes.formats import check_readable, format_of, suffix_of
from medseg.volumes.grid import Grid
from medseg.volumes.nifti import read_nifti, read_nifti_grid
from medseg.volumes.volume import Volume


def read_volume(
    path: Path | str, spatial_dims: int | None = None, allow_non_finite: bool = False, is_quiet: bool = False
) -> Volume:
    """Read one image in the axis order of its file.

    Args:
        path: a NIfTI-1/2, NRRD, MetaImage, PNG or TIFF file, or a DICOM file or the folder of one DICOM series.
        spatial_dims: 2 or 3 to refuse the other; None takes both.
        allow_non_finite: keep NaN and infinite voxels instead of refusing them.
        is_quiet: leave it to the caller to tell the volume's notes; otherwise each is a warning.

    Returns:
        The volume; its array has the stored type, or float where the file carries a scale.

    Raises:
        VolumeError: missing, empty, damaged, truncated, not an image, RGB, complex, of the wrong dimension, or holding
            a voxel that is not finite.
        GeometryError: an affine that is not finite or is singular.
    """
    path = Path(path)
    volume = _read(path)
    if spatial_dims is not None and volume.grid.spatial_dims != spatial_dims:
        raise VolumeError(f"{path}: has shape {volume.grid.shape} where {spatial_dims}D is expected")
    if not allow_non_finite:
        check_finite(volume)
    for note in () if is_quiet else volume.notes:
        warnings.warn(note, stacklevel=2)
    return volume


def read_label_map(path: Path | str, spatial_dims: int | None = None) -> Volume:
    """Read a label map: every voxel a whole number, given as an integer array of the smallest type that holds them.

    Raises:
        VolumeError: as ``read_volume``, and for values that are not whole numbers.
    """
    volume = read_volume(path, spatial_dims=spatial_dims)
    return replace(volume, array=as_integers(volume.array, volume.name))


def read_grid(path: Path | str) -> Grid:
    """The grid of an image file, without reading its voxels where the format allows that."""
    path = Path(path)
    if is_dicom(path):
        from medseg.volumes.dicom.series import read_dicom_grid

        return read_dicom_grid(path)
    check_readable(path)
    format = format_of(path)
    if format == "nifti":
        return read_nifti_grid(path)
    from medseg.volumes.itk import read_itk_grid

    return read_itk_grid(path, format)


def check_finite(volume: Volume) -> None:
    """Raise VolumeError if any voxel is NaN or infinite."""
    array = volume.array
    # A finite sum proves finite voxels at a tenth of the memory; only an overflow needs the second look.
    if array.dtype.kind != "f":
        return
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.sum(array, dtype=np.float64)):
            return
    bad = int(array.size - np.count_nonzero(np.isfinite(array)))
    if bad:
        raise VolumeError(f"{volume.name}: {bad} of {array.size} voxels are NaN or infinite; replace them first")


def as_integers(array: np.ndarray, name: str) -> np.ndarray:
    """Whole numbers as the smallest of uint8, int16, uint16, int32 and int64; integer arrays are kept as they are.

    Raises:
        VolumeError: a value is not a whole number, or is beyond 64 bits.
    """
    if array.dtype.kind in "ui":
        return array
    if array.dtype.kind == "b":
        return array.astype(np.uint8)
    fractional = array != np.rint(array)
    if fractional.any():
        example = array[fractional].flat[0]
        raise VolumeError(
            f"{name}: a label map must hold whole numbers, found {example:g} ({int(fractional.sum())} such voxels); "
            "save it without interpolation or scaling"
        )
    low, high = float(array.min()), float(array.max())
    for dtype in (np.uint8, np.int16, np.uint16, np.int32, np.int64):
        # float(2**63 - 1) rounds up to 2**63, which int64 cannot hold: hence "below", not "at most".
        if np.iinfo(dtype).min <= low and high < float(np.iinfo(dtype).max) + (dtype is not np.int64):
            return array.astype(dtype)
    raise VolumeError(f"{name}: label values from {low:g} to {high:g} do not fit 64-bit integers")


def _read(path: Path) -> Volume:
    if is_dicom(path):
        from medseg.volumes.dicom.series import read_dicom

        return read_dicom(path)
    check_readable(path)
    format = format_of(path)
    if format == "nifti":
        return read_nifti(path)
    from medseg.volumes.itk import read_itk  # SimpleITK takes a while to import; NIfTI does not need it

    return read_itk(path, format)


def check_input(path: Path) -> None:
    """Raise one line unless there is something to read at a path; its content is looked at no further.

    Raises:
        VolumeError: no such file, one that is empty or may not be read, or a folder without DICOM images.
    """
    if is_dicom(path) and path.is_dir():
        from medseg.volumes.dicom.series import dicom_files

        dicom_files(path)
    else:
        check_readable(path)


def is_dicom(path: Path) -> bool:
    """Whether a path is read as DICOM: a folder that is not named like an image, or a file with a DICOM suffix."""
    if path.is_dir():
        return not suffix_of(path)
    return path.suffix.lower() in (".dcm", ".ima", ".dicom") and path.exists()


def holds_dicom(folder: Path) -> bool:
    """Whether a file directly in a folder looks like DICOM."""
    from medseg.volumes.dicom.headers import looks_like_dicom

    return any(looks_like_dicom(file) for file in folder.iterdir() if file.is_file())


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
