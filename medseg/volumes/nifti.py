"""NIfTI-1 and NIfTI-2 through nibabel's headers, with memory that follows the file and not the header's claim."""

from __future__ import annotations

import gzip
import logging
import struct
import zlib
from pathlib import Path
from typing import IO

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from medseg.errors import GeometryError, VolumeError, one_line
from medseg.volumes.files import replacing
from medseg.volumes.formats import suffix_of
from medseg.volumes.grid import Grid
from medseg.volumes.volume import Volume

CHUNK_BYTES = 1 << 20
# nibabel tells of every oddity it repairs in a line of its own; what matters is raised or warned of here.
QUIET = logging.Logger("medseg.volumes.nifti")
QUIET.addHandler(logging.NullHandler())
# Deflate cannot compress better than about 1032:1, so a header that promises more than this is not honest.
DEFLATE_RATIO = 1032
# What nibabel, gzip and zlib raise on bytes that are not what they claim to be.
DAMAGE = (
    ImageFileError,
    HeaderDataError,
    WrapStructError,
    OSError,
    EOFError,
    ValueError,
    KeyError,
    OverflowError,
    struct.error,
    zlib.error,
)


def read_nifti(path: Path) -> Volume:
    """Read a single-file NIfTI-1 or NIfTI-2 image, plain or gzip compressed.

    The array keeps its stored type unless the header has a scale (then float32, or float64 from 32-bit integers up).

    Raises:
        VolumeError: damaged, truncated, RGB or complex, or with a size below 1.
        GeometryError: an affine that is not finite or is singular.
    """
    try:
        with _open(path) as stream:
            header = _read_header(stream, path)
            shape, grid = _geometry(header, path)
            raw = _read_voxels(stream, header, path)
    except (VolumeError, GeometryError):
        raise
    except MemoryError as error:
        raise VolumeError(f"{path}: does not fit into memory: {error}; use a machine with more") from error
    except DAMAGE as error:
        raise VolumeError(
            f"{path}: damaged or truncated ({one_line(error)}); copy or export the image again"
        ) from error
    array = _scaled(raw, header).reshape(shape)
    return Volume(array=array, grid=grid, path=path, format="nifti", header=header)


def read_nifti_header(path: Path) -> nib.Nifti1Header:
    """The header of a NIfTI file; raises as `read_nifti`."""
    try:
        with _open(path) as stream:
            return _read_header(stream, path)
    except (VolumeError, GeometryError):
        raise
    except DAMAGE as error:
        raise VolumeError(
            f"{path}: damaged or truncated ({one_line(error)}); copy or export the image again"
        ) from error


def read_nifti_grid(path: Path) -> Grid:
    """The grid of a NIfTI file, read from the header alone."""
    return _geometry(read_nifti_header(path), path)[1]


def write_nifti(path: Path, array: np.ndarray, like: Volume) -> None:
    """Write ``array`` with the affine (bit for bit), sform/qform and codes, units and NIfTI version of ``like``."""
    header = _header_for(array, like)
    image_class = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    # affine=None leaves the header's own transforms untouched; passing one would rewrite sform, qform and their codes.
    image = image_class(np.asarray(array).reshape(header.get_data_shape()), affine=None, header=header)
    with replacing(path, suffix=suffix_of(path)) as temporary:
        image.to_filename(temporary)


def _open(path: Path) -> IO[bytes]:
    compressed = path.name.lower().endswith(".gz")
    with path.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    if compressed and not is_gzip:
        raise VolumeError(f"{path}: named .gz but not gzip compressed; rename it to .nii if it is a plain NIfTI file")
    if is_gzip and not compressed:
        raise VolumeError(f"{path}: gzip compressed but not named so; rename it to .nii.gz")
    return gzip.open(path, "rb") if compressed else path.open("rb")  # type: ignore[return-value]


def _read_header(stream: IO[bytes], path: Path) -> nib.Nifti1Header:
    start = stream.read(4)
    if len(start) < 4:
        raise VolumeError(f"{path}: truncated inside the header; copy or export the image again")
    sizes = {struct.unpack(order + "i", start)[0] for order in "<>"}
    if not sizes & {348, 540}:
        raise VolumeError(f"{path}: not a NIfTI file (header size {min(sizes)}, not 348 or 540); export it as NIfTI")
    stream.seek(0)
    header_class = nib.Nifti2Header if 540 in sizes else nib.Nifti1Header
    header = header_class.from_fileobj(stream, check=False)
    sizes = header["pixdim"][1 : 1 + min(int(header["dim"][0]), 3)]
    if not int(header["sform_code"]) and not (np.isfinite(sizes).all() and sizes.all()):
        raise GeometryError(f"{path}: has voxels of {sizes.tolist()} mm (pixdim) and no sform; correct the header")
    header.check_fix(logger=QUIET)
    if header["magic"].item().strip(b"\x00\r\n\x1a") not in (b"n+1", b"n+2"):
        raise VolumeError(f"{path}: half of a .hdr/.img pair; convert it to a single .nii file")
    header.get_xyzt_units()  # codes that do not exist are damage
    return header


def _geometry(header: nib.Nifti1Header, path: Path) -> tuple[tuple[int, ...], Grid]:
    stored = tuple(int(size) for size in header.get_data_shape())
    if not stored or min(stored) < 1:
        raise VolumeError(f"{path}: has shape {stored}; every size must be at least 1")
    shape = stored
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > 3:
        raise VolumeError(
            f"{path}: has shape {stored} ({len(shape)}D) where 3D is expected; split it into one file a channel or time"
        )
    if len(shape) < 2:
        raise VolumeError(f"{path}: has shape {stored}; an image needs 2 or 3 axes")
    try:
        return shape, Grid(shape, header.get_best_affine())
    except GeometryError as error:
        raise GeometryError(f"{path}: {error}") from error


def _read_voxels(stream: IO[bytes], header: nib.Nifti1Header, path: Path) -> np.ndarray:
    dtype = header.get_data_dtype()
    if dtype.fields is not None or dtype.kind not in "uif":
        kind = "RGB" if dtype.fields is not None else f"{dtype}"
        raise VolumeError(f"{path}: has {kind} voxels where one real number a voxel is expected; convert it first")
    shape = tuple(int(size) for size in header.get_data_shape())
    wanted = int(dtype.itemsize) * int(np.prod(shape, dtype=object))
    offset = int(header.get_data_offset())
    if offset < header.single_vox_offset:
        # readers disagree: nibabel takes 0 at its word, ITK takes 348, the standard asks for 352 at least
        raise VolumeError(
            f"{path}: its voxels cannot begin at byte {offset} (vox_offset), in the header; export it again"
        )
    on_disk = path.stat().st_size
    limit = on_disk * DEFLATE_RATIO if isinstance(stream, gzip.GzipFile) else on_disk - offset
    if wanted > limit:
        raise VolumeError(
            f"{path}: truncated or a false header: shape {shape} of {dtype} needs {wanted} bytes and the file has "
            f"{on_disk}; copy or export the image again"
        )
    stream.seek(offset)
    # np.empty reserves addresses only; pages become real memory as they are filled, so a lie costs nothing.
    raw = np.empty(wanted, dtype=np.uint8)
    filled, view = 0, memoryview(raw.data)
    while filled < wanted:
        count = stream.readinto(view[filled : filled + CHUNK_BYTES])  # type: ignore[attr-defined]
        if not count:
            raise VolumeError(
                f"{path}: truncated: {wanted} bytes of voxels are promised and {filled} are there; "
                "copy or export the image again"
            )
        filled += count
    stream.read(CHUNK_BYTES)  # reaching the end makes gzip compare its checksum
    return raw.view(dtype).reshape(shape, order="F")


def _scaled(raw: np.ndarray, header: nib.Nifti1Header) -> np.ndarray:
    native = raw.astype(raw.dtype.newbyteorder("="), copy=False)
    if native.dtype.itemsize > 8:
        native = native.astype(np.float64)
    slope, intercept = header.get_slope_inter()
    slope, intercept = 1.0 if slope is None else slope, 0.0 if intercept is None else intercept
    if slope == 1 and intercept == 0:
        return native
    is_wide = native.dtype.itemsize > (4 if native.dtype.kind == "f" else 2)
    result = native.astype(np.float64 if is_wide else np.float32)
    np.multiply(result, slope, out=result)
    np.add(result, intercept, out=result)
    return result


def _header_for(array: np.ndarray, like: Volume) -> nib.Nifti1Header:
    if isinstance(like.header, nib.Nifti1Header):
        header = type(like.header).from_header(like.header)
        stored = tuple(int(size) for size in header.get_data_shape())
        # Tail ones of a 4D file stay, so that the output's shape is the input's.
        header.set_data_shape(array.shape + (1,) * (len(stored) - array.ndim))
        if not np.array_equal(header.get_best_affine(), like.grid.affine):
            _place(header, like.grid, code=int(header["sform_code"]) or int(header["qform_code"]) or 1)
    else:
        # NIfTI-1 counts voxels in 16 bits
        header = nib.Nifti1Header() if max(array.shape) < 2**15 else nib.Nifti2Header()
        header.set_data_shape(array.shape)
        header.set_xyzt_units("mm")
        _place(header, like.grid, code=1)
    header.set_data_dtype(array.dtype)
    header.set_slope_inter(1, 0)
    header["cal_max"] = header["cal_min"] = 0
    header["descrip"] = b"medseg"
    header.extensions.clear()  # they may carry the patient's DICOM header, and they describe the image, not the result
    return header


def _place(header: nib.Nifti1Header, grid: Grid, code: int) -> None:
    header.set_sform(grid.affine, code=code)
    header.set_qform(grid.affine, code=code, strip_shears=True)
