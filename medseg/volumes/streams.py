"""Read voxels from plain and gzip files with memory that follows the size of the file, not the claim of its header."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.freesurfer.mghformat import MGHError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from medseg.errors import MedsegError, VolumeError, one_line

CHUNK_BYTES = 1 << 20
# Deflate compresses to at most about 1032:1 and LZW to about 1400:1, so a header that promises more is wrong.
DEFLATE_RATIO = 1032
MAX_COMPRESSION = 1500
# Exceptions of nibabel, gzip and zlib for bytes that are not what they claim to be.
DAMAGE = (
    ImageFileError,
    HeaderDataError,
    WrapStructError,
    MGHError,
    OSError,
    EOFError,
    ValueError,
    KeyError,
    OverflowError,
    struct.error,
    zlib.error,
)


@contextmanager
def damage_as_volume_error(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file raises into one line that names the file.

    Raises:
        VolumeError: the file is damaged, truncated, or needs more memory than there is.
    """
    try:
        yield
    except MedsegError:
        raise
    except MemoryError as error:
        raise VolumeError(f"{path}: does not fit into memory: {one_line(error)}; use a machine with more") from error
    except DAMAGE as error:
        raise VolumeError(
            f"{path}: damaged or truncated ({one_line(error)}); copy or export the image again"
        ) from error
    except Exception as error:  # whatever else a library raises belongs to this file, too
        raise VolumeError(
            f"{path}: cannot be read ({type(error).__name__}: {one_line(error)}); export the image again"
        ) from error


def open_stream(path: Path, is_gzip: bool) -> IO[bytes]:
    """Open a file for reading, decompressed.

    Args:
        path: the file.
        is_gzip: whether its name says that it is compressed.

    Raises:
        VolumeError: the name says that the file is compressed and it is not, or the reverse.
    """
    with path.open("rb") as file:
        has_gzip_magic = file.read(2) == b"\x1f\x8b"
    if is_gzip and not has_gzip_magic:
        raise VolumeError(f"{path}: named like a gzip file but not gzip compressed; rename it if it is a plain file")
    if has_gzip_magic and not is_gzip:
        raise VolumeError(f"{path}: gzip compressed but not named so; rename it to {path.name}.gz")
    return gzip.open(path, "rb") if is_gzip else path.open("rb")  # type: ignore[return-value]


def read_voxels(stream: IO[bytes], path: Path, shape: tuple[int, ...], dtype: np.dtype, offset: int) -> np.ndarray:
    """Read an array in Fortran order.

    Args:
        stream: the open file.
        path: its path, for messages and for its size.
        shape: sizes as the header states them.
        dtype: type as the header states it.
        offset: byte at which the voxels begin.

    Raises:
        VolumeError: the file holds fewer bytes than the header promises.
    """
    num_bytes = int(dtype.itemsize) * int(np.prod(shape, dtype=object))
    on_disk = path.stat().st_size
    limit = on_disk * DEFLATE_RATIO if isinstance(stream, gzip.GzipFile) else on_disk - offset
    if num_bytes > limit:
        raise VolumeError(
            f"{path}: truncated or a false header: shape {shape} of {dtype} needs {num_bytes} bytes and the file has "
            f"{on_disk}; copy or export the image again"
        )
    stream.seek(offset)
    # np.empty only reserves addresses. Pages become real memory as they are filled, so a false header costs nothing.
    raw = np.empty(num_bytes, dtype=np.uint8)
    filled, view = 0, memoryview(raw.data)
    while filled < num_bytes:
        count = stream.readinto(view[filled : filled + CHUNK_BYTES])  # type: ignore[attr-defined]
        if not count:
            raise VolumeError(
                f"{path}: truncated: {num_bytes} bytes of voxels are promised and {filled} are there; "
                "copy or export the image again"
            )
        filled += count
    _check_end(stream)
    array = raw.view(dtype).reshape(shape, order="F")
    native = array.astype(dtype.newbyteorder("="), copy=False)
    return native.astype(np.float64) if native.dtype.itemsize > 8 else native


def _check_end(stream: IO[bytes]) -> None:
    """Let gzip compare its checksum, which it does when the end is reached; bytes behind that end are left out."""
    try:
        stream.read(CHUNK_BYTES)
    except gzip.BadGzipFile as error:
        # Behind a member whose checksum was right, gzip expects another one or nothing.
        if "Not a gzipped file" not in str(error):
            raise


def spatial_shape(stored: tuple[int, ...], path: Path | str) -> tuple[int, ...]:
    """Return the 2 or 3 spatial sizes of a stored shape, whose further axes must have one voxel.

    Raises:
        VolumeError: a size is below 1, or there are more than 3 or fewer than 2 axes.
    """
    if not stored or min(stored) < 1:
        raise VolumeError(f"{path}: has shape {stored}; every size must be at least 1")
    shape = _without_trailing_ones(stored)
    if len(shape) > 3:
        raise VolumeError(
            f"{path}: has shape {stored} ({len(shape)}D) where 3D is expected; save one file per channel or time point"
        )
    if len(shape) < 2:
        raise VolumeError(f"{path}: has shape {stored}; an image needs 2 or 3 axes")
    return shape


def channel_shape(stored: tuple[int, ...], path: Path | str) -> tuple[tuple[int, ...], int]:
    """Return the spatial sizes of a stored shape, and the number of channels along its fourth or fifth axis.

    NIfTI stores vectors along the fifth axis, with a fourth axis of one voxel.

    Raises:
        VolumeError: as `spatial_shape`, but for channels along one further axis.
    """
    if not stored or min(stored) < 1:
        raise VolumeError(f"{path}: has shape {stored}; every size must be at least 1")
    shape = _without_trailing_ones(stored)
    if len(shape) == 4 or (len(shape) == 5 and shape[3] == 1):
        return shape[:3], shape[-1]
    return spatial_shape(stored, path), 1


def _without_trailing_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
