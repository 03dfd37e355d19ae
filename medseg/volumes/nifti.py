"""Read NIfTI-1, NIfTI-2 and Analyze files, single or as .hdr/.img pairs, and write NIfTI, through nibabel's headers."""

from __future__ import annotations

import logging
import math
import struct
from pathlib import Path
from typing import IO, Any

import nibabel as nib
import numpy as np
from nibabel.imageglobals import LoggingOutputSuppressor
from nibabel.spatialimages import HeaderDataError

from medseg.errors import GeometryError, VolumeError
from medseg.volumes.files import replacing
from medseg.volumes.formats import PAIR_SUFFIX, check_readable, suffix_of, voxel_file
from medseg.volumes.grid import Grid
from medseg.volumes.streams import channel_shape, damage_as_volume_error, open_stream, read_voxels, spatial_shape
from medseg.volumes.volume import Volume

# nibabel logs every oddity that it repairs. What matters to a user is raised as an error or a warning here.
SILENT = logging.Logger("medseg.volumes.nifti")
SILENT.addHandler(logging.NullHandler())


def read(path: Path) -> Volume:
    """Read a NIfTI or Analyze image.

    The array keeps its stored type unless the header has a scale. Then it is float32, or float64 for 32-bit integers
    and wider types.

    Args:
        path: a .nii or .nii.gz file, or the .hdr (.hdr.gz) file of a pair.

    Raises:
        VolumeError: damaged, truncated, RGB or complex voxels, or a size below 1.
        GeometryError: an affine that is not finite or is singular.
    """
    array, grid, header = _read(path, has_channels=False)
    return Volume(array[..., 0], grid, path, _format(header), header)


def read_channels(path: Path) -> list[Volume]:
    """Read the channels along the fourth axis of an image, or the colours of an RGB image; raises as `read`."""
    array, grid, header = _read(path, has_channels=True)
    return [Volume(channel, grid, path, _format(header), header) for channel in np.moveaxis(array, -1, 0)]


def _format(header: Any) -> str:
    return "nifti" if isinstance(header, nib.Nifti1Header) else "analyze"


def _read(path: Path, has_channels: bool) -> tuple[np.ndarray, Grid, Any]:
    """Read voxels (*spatial shape, channels), the grid and the header."""
    suffix = suffix_of(path)
    with damage_as_volume_error(path), open_stream(path, suffix.endswith(".gz")) as stream:
        header, affine, offset = _read_header(stream, path)
        grid, num_channels = _channel_grid(header, affine, path) if has_channels else (_grid(header, affine, path), 1)
        dtype = header.get_data_dtype()
        if not (has_channels and dtype.fields is not None):
            _check_real(dtype, path)
        stored = tuple(int(size) for size in header.get_data_shape())
        if suffix in PAIR_SUFFIX:
            voxels = _existing_voxel_file(path)
            with open_stream(voxels, suffix.endswith(".gz")) as voxel_stream:
                raw = read_voxels(voxel_stream, voxels, stored, dtype, offset)
        elif offset < header.single_vox_offset:
            # Readers disagree: nibabel accepts 0, ITK takes 348 instead, and the standard demands at least 352.
            raise VolumeError(
                f"{path}: its voxels cannot begin at byte {offset} (vox_offset), in the header; export it again"
            )
        else:
            raw = read_voxels(stream, path, stored, dtype, offset)
        if dtype.fields is not None:
            return np.stack([raw[name].reshape(grid.shape, order="F") for name in dtype.names], axis=-1), grid, header
        array = _scaled(raw, *_scale(header, path)).reshape((*grid.shape, num_channels), order="F")
    return array, grid, header


def read_header(path: Path) -> nib.analyze.AnalyzeHeader:
    """Read the header of a NIfTI or Analyze file; raises as `read`. A NIfTI pair's becomes that of a single file."""
    with damage_as_volume_error(path), open_stream(path, suffix_of(path).endswith(".gz")) as stream:
        return _read_header(stream, path)[0]


def read_grid(path: Path) -> Grid:
    """Read the grid from the header alone; raises as `read`."""
    with damage_as_volume_error(path), open_stream(path, suffix_of(path).endswith(".gz")) as stream:
        header, affine, _ = _read_header(stream, path)
        return _grid(header, affine, path)


def read_channel_grid(path: Path) -> tuple[Grid, int]:
    """Read the grid and the number of channels from the header alone; raises as `read_channels`."""
    with damage_as_volume_error(path), open_stream(path, suffix_of(path).endswith(".gz")) as stream:
        header, affine, _ = _read_header(stream, path)
        return _channel_grid(header, affine, path)


def write(path: Path, array: np.ndarray, like: Volume) -> None:
    """Write a NIfTI file with the affine (bit for bit), sform, qform, their codes, units and version of `like`."""
    header = _header_for(array, like)
    image_class = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    # affine=None leaves the header's own transforms untouched. Passing one would rewrite sform, qform and their codes.
    image = image_class(np.asarray(array).reshape(header.get_data_shape()), affine=None, header=header)
    with replacing(path, suffix=suffix_of(path)) as temporary:
        image.to_filename(temporary)


def check_grid_fits(path: Path, like: Volume) -> None:
    """Check that a file of this name can store the grid of `like`; NIfTI stores every grid.

    Raises:
        VolumeError: header and voxels would be two files.
    """
    if suffix_of(path) in PAIR_SUFFIX:
        raise VolumeError(f"{path}: not written: header and voxels would be two files; use .nii.gz")


def single_file_header(header: nib.Nifti1Header) -> nib.Nifti1Header:
    """Return a NIfTI header, which may be that of a .hdr/.img pair, as the header of a single file."""
    is_second = isinstance(header, nib.nifti2.Nifti2Header)
    single_class = nib.Nifti2Header if is_second else nib.Nifti1Header
    single = single_class(header.binaryblock, endianness=header.endianness, check=False)
    if not header.is_single or single["magic"].item() not in (b"n+1", b"n+2"):
        single["magic"] = single_class.single_magic
        single["vox_offset"] = 0  # nibabel sets it when it writes
    return single


def _read_header(stream: IO[bytes], path: Path) -> tuple[Any, np.ndarray, int]:
    """Read header, affine and the offset of the voxels."""
    start = stream.read(4)
    if len(start) < 4:
        raise VolumeError(f"{path}: truncated inside the header; copy or export the image again")
    sizes = {struct.unpack(order + "i", start)[0] for order in "<>"}
    if not sizes & {348, 540}:
        raise VolumeError(f"{path}: not a NIfTI file (header size {min(sizes)}, not 348 or 540); export it as NIfTI")
    stream.seek(0)
    is_pair = suffix_of(path) in PAIR_SUFFIX
    header_class = nib.Nifti2Header if 540 in sizes else nib.Nifti1Header
    header = header_class.from_fileobj(stream, check=False)
    magic = header["magic"].item().strip(b"\x00\r\n\x1a")
    if is_pair and magic not in (b"ni1", b"ni2", b"n+1", b"n+2"):
        return _read_analyze(path)
    zooms = header["pixdim"][1 : 1 + min(int(header["dim"][0]), 3)]
    if not int(header["sform_code"]) and not (np.isfinite(zooms).all() and zooms.all()):
        raise GeometryError(f"{path}: has voxels of {zooms.tolist()} mm (pixdim) and no sform; correct the header")
    if is_pair:
        offset = int(header["vox_offset"])
        header = single_file_header(header)
        header.check_fix(logger=SILENT)
    else:
        header.check_fix(logger=SILENT)
        offset = int(header.get_data_offset())
        if header["magic"].item().strip(b"\x00\r\n\x1a") not in (b"n+1", b"n+2"):
            raise VolumeError(
                f"{path}: half of a .hdr/.img pair; rename it to .hdr or convert it to a single .nii file"
            )
    header.get_xyzt_units()  # raises for a code that does not exist
    return header, header.get_best_affine(), offset


def _read_analyze(path: Path) -> tuple[Any, np.ndarray, int]:
    """Read an Analyze 7.5 or SPM header as nibabel does, with SPM's .mat file if there is one."""
    _existing_voxel_file(path)
    with LoggingOutputSuppressor():
        image = nib.load(path)
    return image.header, image.affine, int(image.header.get_data_offset())


def _existing_voxel_file(path: Path) -> Path:
    voxels = voxel_file(path)
    if voxels is None or not voxels.exists():
        raise VolumeError(f"{path}: the file {voxels and voxels.name} with its voxels is missing; copy both files")
    check_readable(voxels)
    return voxels


def _grid(header: Any, affine: np.ndarray, path: Path) -> Grid:
    return _grid_of(spatial_shape(tuple(int(size) for size in header.get_data_shape()), path), affine, path)


def _channel_grid(header: Any, affine: np.ndarray, path: Path) -> tuple[Grid, int]:
    shape, num_channels = channel_shape(tuple(int(size) for size in header.get_data_shape()), path)
    names = header.get_data_dtype().names
    if names is not None and num_channels > 1:
        raise VolumeError(f"{path}: has {num_channels} RGB images; save one file per image")
    return _grid_of(shape, affine, path), len(names) if names else num_channels


def _grid_of(shape: tuple[int, ...], affine: np.ndarray, path: Path) -> Grid:
    try:
        return Grid(shape, affine)
    except GeometryError as error:
        raise GeometryError(f"{path}: {error}") from error


def _check_real(dtype: np.dtype, path: Path) -> None:
    if dtype.fields is not None or dtype.kind not in "uif":
        kind = "RGB" if dtype.fields is not None else f"{dtype}"
        raise VolumeError(f"{path}: has {kind} voxels where one real number per voxel is expected; convert it first")


def _scale(header: Any, path: Path) -> tuple[float, float]:
    """Return slope and intercept of the stored numbers. As in nibabel, a slope of 0 or NaN means that there is none.

    Raises:
        VolumeError: an infinite slope, or an intercept that is not finite beside a slope.
    """
    try:
        slope, intercept = header.get_slope_inter()
    except HeaderDataError:
        slope, intercept = math.inf, header["scl_inter"].item()
    if slope is None and "scl_slope" in header and np.isinf(header["scl_slope"]):
        slope = math.inf
    if slope is not None and not (math.isfinite(slope) and math.isfinite(intercept or 0)):
        stored = header["scl_slope"].item(), header["scl_inter"].item() if "scl_inter" in header else 0
        raise VolumeError(
            f"{path}: its values cannot be scaled by scl_slope {stored[0]:g} and scl_inter {stored[1]:g}; correct the "
            "header"
        )
    return (1.0 if slope is None else float(slope)), float(intercept or 0)


def _scaled(raw: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    if slope == 1 and intercept == 0:
        return raw
    # The 24 bits of float32 hold 16 bits of contrast above an intercept of up to 2^8 times their range.
    is_wide = raw.dtype.itemsize > (4 if raw.dtype.kind == "f" else 2) or abs(intercept) > 2**24 * abs(slope)
    result = raw.astype(np.float64 if is_wide else np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # voxels that are not finite are refused later
        np.multiply(result, slope, out=result)
        np.add(result, intercept, out=result)
    return result


def _header_for(array: np.ndarray, like: Volume) -> nib.Nifti1Header:
    if isinstance(like.header, nib.Nifti1Header):
        # Without extensions: they describe the image, not the result, and may contain the patient's DICOM header.
        header = single_file_header(like.header)
        stored = tuple(int(size) for size in header.get_data_shape())
        # Trailing axes of one voxel stay, so that the output's shape equals the input's. An axis of channels does not.
        trailing = stored[array.ndim :] if set(stored[array.ndim :]) == {1} else ()
        header.set_data_shape(array.shape + trailing)
        if not np.array_equal(header.get_best_affine(), like.grid.affine):
            _set_affine(header, like.grid, code=int(header["sform_code"]) or int(header["qform_code"]) or 1)
    else:
        # NIfTI-1 stores sizes in 16 bits.
        header = nib.Nifti1Header() if max(array.shape) < 2**15 else nib.Nifti2Header()
        header.set_data_shape(array.shape)
        header.set_xyzt_units("mm")
        _set_affine(header, like.grid, code=1)
    header.set_data_dtype(array.dtype)
    header.set_slope_inter(1, 0)
    header["cal_max"] = header["cal_min"] = 0
    header["descrip"] = b"medseg"
    return header


def _set_affine(header: nib.Nifti1Header, grid: Grid, code: int) -> None:
    header.set_sform(grid.affine, code=code)
    header.set_qform(grid.affine, code=code, strip_shears=True)
