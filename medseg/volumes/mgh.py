"""Read and write FreeSurfer's MGH and MGZ files through nibabel's header."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np
from nibabel.freesurfer.mghformat import DATA_OFFSET, MGHHeader, MGHImage

from medseg.errors import GeometryError, VolumeError
from medseg.volumes.files import replacing
from medseg.volumes.formats import suffix_of
from medseg.volumes.grid import Grid
from medseg.volumes.streams import channel_shape, damage_as_volume_error, open_stream, read_voxels, spatial_shape
from medseg.volumes.volume import Volume

# uint16 is a late addition to the format that older FreeSurfer versions do not read.
STORED_TYPES = (np.uint8, np.int16, np.int32, np.float32)
VERSION = 1


def read(path: Path) -> Volume:
    """Read an MGH or MGZ image.

    Raises:
        VolumeError: damaged, truncated, an unknown voxel type, or more than one frame.
        GeometryError: an affine that is not finite or is singular.
    """
    with damage_as_volume_error(path), _open(path) as stream:
        header = _read_header(stream, path)
        grid = _grid(header, path)
        array = _voxels(stream, header, path)
    return Volume(array=array.reshape(grid.shape), grid=grid, path=path, format="mgz", header=header)


def read_channels(path: Path) -> list[Volume]:
    """Read the frames of an MGH or MGZ image as channels; raises as `read`."""
    with damage_as_volume_error(path), _open(path) as stream:
        header = _read_header(stream, path)
        grid, num_channels = _channel_grid(header, path)
        array = _voxels(stream, header, path).reshape((*grid.shape, num_channels), order="F")
    return [Volume(channel, grid, path, "mgz", header) for channel in np.moveaxis(array, -1, 0)]


def _voxels(stream: IO[bytes], header: MGHHeader, path: Path) -> np.ndarray:
    stored = tuple(int(size) for size in header["dims"])
    return read_voxels(stream, path, stored, header.get_data_dtype().newbyteorder(">"), DATA_OFFSET)


def read_header(path: Path) -> MGHHeader:
    """Read the header alone; raises as `read`."""
    with damage_as_volume_error(path), _open(path) as stream:
        return _read_header(stream, path)


def read_grid(path: Path) -> Grid:
    """Read the grid from the header alone; raises as `read`."""
    return _grid(read_header(path), path)


def read_channel_grid(path: Path) -> tuple[Grid, int]:
    """Read the grid and the number of frames from the header alone; raises as `read_channels`."""
    return _channel_grid(read_header(path), path)


def write(path: Path, array: np.ndarray, like: Volume) -> None:
    """Write an array on the grid of `like`, with its affine bit for bit if `like` is an MGH image.

    The format stores the affine of other images as float32 directions, voxel sizes and centre.

    Args:
        path: the output, .mgz or .mgh.
        array: voxels. A type that the format lacks becomes the smallest one that holds its values.
        like: the volume whose grid the file gets.

    Raises:
        VolumeError: two dimensions, or values that no type of the format can hold.
    """
    check_grid_fits(path, like)
    array = _storable(array, path)
    header = MGHHeader()
    header.set_data_shape(array.shape)
    header.set_data_dtype(array.dtype)
    header["goodRASFlag"] = 1
    if isinstance(like.header, MGHHeader) and np.array_equal(like.header.get_affine(), like.grid.affine):
        for field in ("delta", "Mdc", "Pxyz_c"):
            header[field] = like.header[field]
        image = MGHImage(array, None, header)
    else:
        image = MGHImage(array, like.grid.affine, header)
    with replacing(path, suffix=suffix_of(path)) as temporary:
        image.to_filename(temporary)


def check_grid_fits(path: Path, like: Volume) -> None:
    """Check that the format can store the grid of `like`.

    Raises:
        VolumeError: the grid has two axes.
    """
    if like.grid.spatial_dims != 3:
        raise VolumeError(f"{path}: not written: MGH stores 3D images, found {like.grid.spatial_dims}D; use .nii.gz")


def _open(path: Path) -> IO[bytes]:
    return open_stream(path, suffix_of(path).endswith("z"))


def _read_header(stream: IO[bytes], path: Path) -> MGHHeader:
    block = stream.read(DATA_OFFSET)
    if len(block) < DATA_OFFSET:
        raise VolumeError(f"{path}: truncated inside the header; copy or export the image again")
    # nibabel's own from_fileobj seeks to the footer behind the voxels, wherever the header says that is.
    header = MGHHeader(block, check=False)
    version, code = int(header["version"]), int(header["type"])
    if version != VERSION:
        raise VolumeError(f"{path}: not an MGH file (version {version}, not {VERSION}); export the image again")
    try:
        header.get_data_dtype()
    except KeyError as error:
        raise VolumeError(f"{path}: has the unknown voxel type {code}; convert it with mri_convert") from error
    return header


def _grid(header: MGHHeader, path: Path) -> Grid:
    stored = tuple(int(size) for size in header["dims"])
    if stored[3:] == (1,):
        stored = stored[:3]
    return _grid_of(spatial_shape(stored, path), header, path)


def _channel_grid(header: MGHHeader, path: Path) -> tuple[Grid, int]:
    shape, num_channels = channel_shape(tuple(int(size) for size in header["dims"]), path)
    return _grid_of(shape, header, path), num_channels


def _grid_of(shape: tuple[int, ...], header: MGHHeader, path: Path) -> Grid:
    try:
        return Grid(shape, header.get_affine())
    except GeometryError as error:
        raise GeometryError(f"{path}: {error}") from error


def _storable(array: np.ndarray, path: Path) -> np.ndarray:
    for dtype in STORED_TYPES:
        if array.dtype == dtype or np.can_cast(array.dtype, dtype, "safe"):
            return array.astype(dtype, copy=False)
    if array.dtype.kind in "ui":
        limits = np.iinfo(np.int32)
        if array.min() >= limits.min and array.max() <= limits.max:
            return array.astype(np.int32)
    elif array.dtype.kind == "f" and np.array_equal(array, array.astype(np.float32), equal_nan=True):
        return array.astype(np.float32)
    raise VolumeError(
        f"{path}: not written: {array.dtype} values from {array.min():g} to {array.max():g} do not fit the "
        "types of MGH (uint8, int16, int32, float32); use .nii.gz"
    )
