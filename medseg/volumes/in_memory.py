"""Turn images in memory into volumes: arrays with an affine, nibabel images and SimpleITK images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.freesurfer.mghformat import MGHHeader

from medseg.errors import GeometryError, VolumeError
from medseg.volumes.grid import Grid
from medseg.volumes.io import check_finite, is_dicom, read_channels, read_volume
from medseg.volumes.nifti import single_file_header
from medseg.volumes.volume import Volume

IN_MEMORY = "image in memory"


def as_volume(source: Any) -> Volume:
    """Return a volume from whatever holds one image.

    Args:
        source: a path, a Volume, a nibabel image, a SimpleITK image, or (array, affine) with the array in the affine's
            axis order (i, j[, k]) and the affine RAS+ mm.

    Raises:
        VolumeError: something else, several channels, RGB or complex voxels, or voxels that are not finite.
        GeometryError: the affine cannot be used or does not fit.
    """
    if isinstance(source, str | os.PathLike):
        return read_volume(os.fspath(source))
    if isinstance(source, Sequence) and not _is_array_with_affine(source):
        raise VolumeError(f"cannot take a {type(source).__name__} as one image; {_EXPECTED}")
    volumes = as_channels(source)
    if len(volumes) != 1:
        raise VolumeError(f"{IN_MEMORY}: holds {len(volumes)} channels where one is expected; give one at a time")
    return volumes[0]


def as_channels(source: Any, spatial_dims: int | None = None, num_channels: int = 1) -> list[Volume]:
    """Return one volume per channel from whatever holds the channels of one case.

    Args:
        source: as in `as_volume`, or a sequence of such sources, one per channel. An array may have the channels first,
            a nibabel image may have them last, and a SimpleITK image may have several components per pixel.
        spatial_dims: 2 or 3; None accepts both and no array with channels. Files with another number are refused.
        num_channels: expected number of channels. If there are several and one file is given, it may hold all of them.

    Raises:
        VolumeError: as `as_volume`.
        GeometryError: as `as_volume`.
    """
    if isinstance(source, Volume):
        return [source]
    if isinstance(source, str | os.PathLike):
        if num_channels > 1:
            return read_channels(os.fspath(source), spatial_dims=spatial_dims, is_quiet=True)
        return [read_volume(os.fspath(source), spatial_dims=spatial_dims, is_quiet=True)]
    if _is_array_with_affine(source):
        return _from_array(source[0], source[1], spatial_dims)
    if isinstance(source, Sequence):
        parts = _gathered(source)
        in_one = num_channels if len(parts) == 1 else 1
        return [volume for part in parts for volume in as_channels(part, spatial_dims, in_one)]
    if _is_nibabel(source):
        return _from_nibabel(source, spatial_dims)
    if _is_simpleitk(source):
        return _from_simpleitk(source)
    raise VolumeError(f"{type(source).__name__}: not an image medseg can read; {_EXPECTED}")


_EXPECTED = "give a path, a nibabel or SimpleITK image, or (array, affine)"


def _gathered(sources: Sequence[Any]) -> Sequence[Any]:
    """Replace several DICOM files by one path per series."""
    are_paths = len(sources) > 1 and all(isinstance(part, str | os.PathLike) for part in sources)
    paths = [Path(os.fspath(part)) for part in sources] if are_paths else []
    if not paths or not all(path.is_file() and is_dicom(path) for path in paths):
        return sources
    from medseg.volumes.dicom.series_files import one_path_per_series

    return one_path_per_series(paths)


def _is_array_with_affine(source: Any) -> bool:
    if not (isinstance(source, tuple) and len(source) == 2):
        return False
    first = source[0]
    return not (isinstance(first, str | os.PathLike | Volume) or _is_nibabel(first) or _is_simpleitk(first))


def _is_nibabel(source: Any) -> bool:
    return hasattr(source, "affine") and hasattr(source, "dataobj")


def _is_simpleitk(source: Any) -> bool:
    # Asked by name, so that SimpleITK is imported only by those who use it.
    return type(source).__module__.partition(".")[0] == "SimpleITK"


def _from_array(
    array: Any, affine: Any, spatial_dims: int | None, format: str = "memory", header: Any = None
) -> list[Volume]:
    values = np.asarray(array)
    if values.dtype.kind not in "biuf":
        raise VolumeError(f"{IN_MEMORY}: has {values.dtype} voxels where one real number per voxel is expected")
    try:
        matrix = np.asarray(affine, dtype=np.float64)
    except (TypeError, ValueError) as error:
        found = " ".join(repr(affine).split())[:80]
        raise GeometryError(f"{IN_MEMORY}: the affine must be 4×4 numbers, found {found}") from error
    has_channels = spatial_dims is not None and values.ndim == spatial_dims + 1
    parts = list(values) if has_channels else [values]
    if not parts or parts[0].ndim not in ((2, 3) if spatial_dims is None else (spatial_dims,)):
        expected = "2 or 3 axes" if spatial_dims is None else f"{spatial_dims} axes, or one more for channels,"
        raise VolumeError(f"{IN_MEMORY}: has shape {values.shape} where {expected} are expected")
    if matrix.shape == (3, 3) and parts[0].ndim == 2:
        matrix = np.block([[matrix[:2, :2], np.zeros((2, 1)), matrix[:2, 2:]], [0, 0, 1, 0], [0, 0, 0, 1]])
    try:
        grid = Grid(parts[0].shape, matrix)
    except GeometryError as error:
        raise GeometryError(f"{IN_MEMORY}: {error}") from error
    volumes = [Volume(part, grid, None, format, header) for part in parts]
    for volume in volumes:
        check_finite(volume)
    return volumes


def _from_nibabel(image: Any, spatial_dims: int | None) -> list[Volume]:
    data = np.asanyarray(image.dataobj)
    while data.ndim > (spatial_dims or 3) and data.shape[-1] == 1:
        data = data[..., 0]
    if spatial_dims is not None and data.ndim == spatial_dims + 1:
        data = np.moveaxis(data, -1, 0)
    # The headers of other formats cannot be carried over to a file, so their images keep the affine alone.
    if isinstance(image.header, nib.Nifti1Header):
        return _from_array(data, image.affine, spatial_dims, "nifti", single_file_header(image.header))
    if isinstance(image.header, MGHHeader):
        return _from_array(data, image.affine, spatial_dims, "mgz", image.header)
    return _from_array(data, image.affine, spatial_dims)


def _from_simpleitk(image: Any) -> list[Volume]:
    import SimpleITK as sitk  # noqa: N813 (the field's spelling)

    from medseg.volumes.itk import from_simpleitk

    num_components = image.GetNumberOfComponentsPerPixel()
    if num_components == 1:
        volumes = [from_simpleitk(image)]
    else:
        volumes = [from_simpleitk(sitk.VectorIndexSelectionCast(image, number)) for number in range(num_components)]
    for volume in volumes:
        if volume.array.dtype.kind not in "biuf":
            found = volume.array.dtype
            raise VolumeError(f"{IN_MEMORY}: has {found} voxels where one real number per voxel is expected")
        check_finite(volume)
    return volumes
