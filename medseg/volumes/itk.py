"""Read and write NRRD and MetaImage through SimpleITK, in nibabel's conventions (axis order i, j, k; RAS+ mm)."""

from __future__ import annotations

import re
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813 (the field's spelling)

from medseg.errors import GeometryError, VolumeError
from medseg.volumes.files import replacing
from medseg.volumes.formats import format_of, suffix_of
from medseg.volumes.grid import Grid
from medseg.volumes.streams import MAX_COMPRESSION, channel_shape, spatial_shape
from medseg.volumes.text_headers import check_metaimage, check_nrrd
from medseg.volumes.volume import Volume

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
IMAGE_IO = {"nrrd": "NrrdImageIO", "mha": "MetaImageIO"}
HEADER_BYTES = 1 << 16
CHUNK_BYTES = 1 << 20
# Tells zlib to accept a zlib or a gzip header, whichever is there.
AUTO_WBITS = 47

# Lines that state the unit of lengths, and the place where a header ends.
UNITS = {"nrrd": rb"(?im)^(?:space )?units:\s*(.*?)\s*$", "mha": rb"(?m)^DistanceUnits\s*=\s*(.*?)\s*$"}
END_OF_HEADER = {"nrrd": rb"\r?\n\r?\n", "mha": rb"(?m)^ElementDataFile"}
MILLIMETRES = {"", "mm", "millimeter", "millimeters", "millimetre", "millimetres", "?"}
DATA_FILE = rb"ElementDataFile\s*=\s*(.+?)"
PIXEL_TYPES: dict[str, type] = {
    "UInt8": np.uint8,
    "Int8": np.int8,
    "UInt16": np.uint16,
    "Int16": np.int16,
    "UInt32": np.uint32,
    "Int32": np.int32,
    "UInt64": np.uint64,
    "Int64": np.int64,
    "Float32": np.float32,
    "Float64": np.float64,
}
METAIMAGE_TYPES = {
    f"MET_{name}{array}".encode()
    for name in ("ASCII_CHAR", "CHAR", "UCHAR", "SHORT", "USHORT", "INT", "UINT", "LONG", "ULONG", "LONG_LONG",
                 "ULONG_LONG", "FLOAT", "DOUBLE")
    for array in ("", "_ARRAY")
}  # fmt: skip
SIGNATURES = {
    "nrrd": rb"NRRD000\d\s",
    "mha": rb"(?s).*\bNDims\s*=\s*\d",
}


def read(path: Path) -> Volume:
    """Read an NRRD or MetaImage file.

    Raises:
        VolumeError: damaged, truncated, several components per voxel, or more than three axes.
        GeometryError: an affine that is not finite or is singular.
    """
    reader = _reader(path)
    grid = _grid(reader, _shape(reader, path), path)
    array, header = _voxels(reader, path, grid.shape, numpy_type(reader, path))
    return Volume(array=array, grid=grid, path=path, format=format_of(path), header=header)


def read_channels(path: Path) -> list[Volume]:
    """Read the components per voxel, or the images along a fourth axis, as channels; raises as `read`."""
    reader = _reader(path)
    grid, num_channels = _channel_grid(reader, path)
    array, header = _voxels(reader, path, (*grid.shape, num_channels), numpy_type(reader, path, has_components=True))
    return [Volume(channel, grid, path, format_of(path), header) for channel in np.moveaxis(array, -1, 0)]


def _voxels(
    reader: sitk.ImageFileReader, path: Path, shape: tuple[int, ...], dtype: np.dtype
) -> tuple[np.ndarray, dict[str, Any]]:
    """Read voxels (*spatial shape[, channels]) and the file's own metadata."""
    _check_voxels_on_disk(path, shape, dtype.itemsize)
    try:
        image = reader.Execute()
    except (RuntimeError, MemoryError) as error:
        raise itk_error(path, error) from error
    array = sitk.GetArrayFromImage(image).T
    has_components = image.GetNumberOfComponentsPerPixel() > 1
    array = np.moveaxis(array, 0, -1).reshape(shape) if has_components else array.reshape(shape, order="F")
    return array, {**_metadata(image), "notes": _unit_notes(path)}


def read_grid(path: Path) -> Grid:
    """Read the grid from the header alone; raises as `read`."""
    reader = _reader(path)
    return _grid(reader, _shape(reader, path), path)


def read_channel_grid(path: Path) -> tuple[Grid, int]:
    """Read the grid and the number of channels from the header alone; raises as `read_channels`."""
    return _channel_grid(_reader(path), path)


def write(path: Path, array: np.ndarray, like: Volume) -> None:
    """Write an array on the grid of `like`.

    Raises:
        VolumeError: the file would be split in two, or cannot be written.
    """
    check_grid_fits(path, like)
    write_image(path, array, like.grid)


def check_grid_fits(path: Path, like: Volume) -> None:
    """Check that a file of this name can store the grid of `like`; both formats store every grid.

    Raises:
        VolumeError: header and voxels would be two files.
    """
    if suffix_of(path) in (".mhd", ".nhdr"):
        raise VolumeError(f"{path}: not written: header and voxels would be two files; use .mha or .nrrd")


def write_image(path: Path, array: np.ndarray, grid: Grid) -> None:
    """Write an array with SimpleITK, compressed and atomically.

    Raises:
        VolumeError: the type cannot be stored, or the file cannot be written.
    """
    itk_name(path)
    image = to_simpleitk(array, grid)
    with replacing(path, suffix=suffix_of(path)) as temporary:
        try:
            sitk.WriteImage(image, str(temporary), useCompression=True)
        except RuntimeError as error:
            raise VolumeError(
                f"{path}: could not be written: {_reason(error)}; check the folder and its space"
            ) from error


def itk_name(path: Path) -> str:
    """Return a file's name as SimpleITK takes it. A name that is not valid Unicode would end the whole process.

    Raises:
        VolumeError: the name is not valid Unicode.
    """
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError as error:
        raise VolumeError(f"{path}: the name is not valid Unicode, which ITK cannot open; rename the file") from error
    return str(path)


def from_simpleitk(image: sitk.Image) -> Volume:
    """Convert a SimpleITK image with one component per voxel.

    Raises:
        VolumeError: several components, or more than three axes.
    """
    shape = _shape(image, "image in memory")
    array = sitk.GetArrayFromImage(image).T.reshape(shape, order="F")
    return Volume(array=array, grid=Grid(shape, affine_of(image)))


def to_simpleitk(array: np.ndarray, grid: Grid) -> sitk.Image:
    """Convert an array in the axis order of its grid to a SimpleITK image (LPS+)."""
    dims = grid.spatial_dims
    affine = LPS_TO_RAS @ grid.affine
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing(grid.spacing)
    image.SetOrigin(affine[:dims, 3].tolist())
    image.SetDirection((affine[:dims, :dims] / grid.spacing).ravel().tolist())
    return image


def affine_of(image: sitk.Image | sitk.ImageFileReader) -> np.ndarray:
    """Return the RAS+ affine of a SimpleITK image, from its first three axes if it has more."""
    dims = image.GetDimension()
    keep = min(dims, 3)
    direction = np.array(image.GetDirection()).reshape(dims, dims)[:keep, :keep]
    affine = np.eye(4)
    affine[:keep, :keep] = direction * np.array(image.GetSpacing())[:keep]
    affine[:keep, 3] = np.array(image.GetOrigin())[:keep]
    return LPS_TO_RAS @ affine


def itk_error(path: Path, error: Exception) -> VolumeError:
    """Return an error with one line in place of the many of ITK."""
    return VolumeError(f"{path}: damaged, truncated or not what its name says ({_reason(error)}); export it again")


def numpy_type(reader: sitk.ImageFileReader, path: Path, has_components: bool = False) -> np.dtype:
    """Return the type of a voxel, or of each of its components, that a reader's header announces.

    Raises:
        VolumeError: RGB, complex, or another type that is not one real number.
    """
    prefixes = ("sitk", "sitkVector") if has_components else ("sitk",)
    types = {getattr(sitk, f"{prefix}{name}"): dtype for prefix in prefixes for name, dtype in PIXEL_TYPES.items()}
    kind = reader.GetPixelID()
    if kind not in types:
        name = sitk.GetPixelIDValueAsString(kind)
        raise VolumeError(f"{path}: has voxels of type {name} where one real number is expected; convert it first")
    return np.dtype(types[kind])


def _reader(path: Path) -> sitk.ImageFileReader:
    format = format_of(path)
    _check_header(path, format)
    reader = sitk.ImageFileReader()
    reader.SetFileName(itk_name(path))
    reader.SetImageIO(IMAGE_IO[format])
    try:
        reader.ReadImageInformation()
    except (RuntimeError, MemoryError) as error:
        raise itk_error(path, error) from error
    return reader


def _shape(image: sitk.ImageFileReader | sitk.Image, path: Path | str) -> tuple[int, ...]:
    num_components = (
        image.GetNumberOfComponentsPerPixel() if isinstance(image, sitk.Image) else image.GetNumberOfComponents()
    )
    if num_components != 1:
        raise VolumeError(
            f"{path}: has {num_components} components per voxel (RGB or a vector) where one real number is expected; "
            "convert it first"
        )
    return spatial_shape(tuple(int(size) for size in image.GetSize()), path)


def _grid(reader: sitk.ImageFileReader, shape: tuple[int, ...], path: Path) -> Grid:
    try:
        return Grid(shape, affine_of(reader))
    except GeometryError as error:
        raise GeometryError(f"{path}: {error}") from error


def _channel_grid(reader: sitk.ImageFileReader, path: Path) -> tuple[Grid, int]:
    shape, num_images = channel_shape(tuple(int(size) for size in reader.GetSize()), path)
    num_components = reader.GetNumberOfComponents()
    if min(num_images, num_components) > 1:
        raise VolumeError(
            f"{path}: has {num_images} images of {num_components} components per voxel; save one file per image"
        )
    return _grid(reader, shape, path), max(num_images, num_components)


def _unit_notes(path: Path) -> list[str]:
    """Return a note if the header states another unit than mm, of which ITK takes no notice."""
    with path.open("rb") as stream:
        start = stream.read(HEADER_BYTES)
    end = re.search(END_OF_HEADER[format_of(path)], start)
    stated = re.findall(UNITS[format_of(path)], start[: end.start()] if end else start)
    units = {unit.strip().lower() for text in stated for unit in text.decode("utf-8", "replace").split('"')}
    other = sorted(units - MILLIMETRES)
    if not other:
        return []
    return [f"{path}: declares {' and '.join(other)} as its unit; the numbers of its affine are read as mm"]


def _metadata(image: sitk.Image) -> dict[str, str]:
    """Return the text fields of a file, without those that damaged bytes made unreadable."""
    fields = {}
    for key in image.GetMetaDataKeys():
        with suppress(TypeError, UnicodeError, RuntimeError):
            fields[key] = image.GetMetaData(key)
    return fields


def _reason(error: Exception) -> str:
    """Return the last line of an ITK error, without the class and its address in memory."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = (lines[-1] if lines else type(error).__name__).removeprefix("ITK ERROR: ")
    reason = re.sub(r"^\w+\(0x[0-9a-f]+\): ", "", reason)
    return "no reason given" if reason == "Reason: Success" else reason.removeprefix("Reason: ")


# The functions below check a file before ITK reads it, because ITK prints lines of its own about damage and accepts
# compressed voxels that are damaged.


def _check_header(path: Path, format: str) -> None:
    """Check that a file begins as its format does.

    Raises:
        VolumeError: another kind of file, or a damaged header.
    """
    with path.open("rb") as stream:
        start = stream.read(HEADER_BYTES)
    if re.match(SIGNATURES[format], start) is None:
        raise VolumeError(f"{path}: named like a {format} file, but not one; export the image again")
    if format == "nrrd":
        end = re.search(rb"\r?\n\r?\n", start)
        check_nrrd(path, start[: end.start()] if end else start)
        return
    # ElementDataFile is the header's last field. What looks like a field behind it belongs to the voxels.
    end = re.search(rb"(?m)^ElementDataFile\s*=.*$", start)
    header = start[: end.end()] if end else start
    check_metaimage(path, header)
    fields = dict(re.findall(rb"(?m)^(\w+)\s*=\s*(.*?)\s*$", header))
    if fields[b"ElementType"] not in METAIMAGE_TYPES:
        raise VolumeError(
            f"{path}: its header states the unknown ElementType {fields[b'ElementType'].decode('ascii', 'replace')}; "
            "correct the header"
        )
    voxels = fields[b"ElementDataFile"].decode("utf-8", "replace")
    # LIST and a pattern with % stand for several files.
    if voxels.upper() != "LOCAL" and not re.match("(?i)LIST|.*%", voxels) and not _is_file(path.parent / voxels):
        raise VolumeError(f"{path}: its header names the file {voxels[:60]} with the voxels, which does not exist")

    if fields.get(b"BinaryData", b"").lower() not in (b"true", b"t", b"1") and voxels.upper() == "LOCAL":
        _check_text_voxels(path, len(header), int(np.prod([int(n) for n in fields[b"DimSize"].split()], dtype=object)))


def _check_text_voxels(path: Path, offset: int, count: int) -> None:
    """Check that voxels that the header declares as text are that many numbers."""
    with path.open("rb") as stream:
        stream.seek(offset)
        voxels = stream.read()
    if not re.fullmatch(rb"[\d\s.eE+-]*", voxels) or len(voxels.split()) < count:
        raise VolumeError(
            f"{path}: damaged: its header declares {count} voxels as text (BinaryData), and they are not; correct it"
        )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or with a zero byte
        return False


def _check_voxels_on_disk(path: Path, shape: tuple[int, ...], itemsize: int) -> None:
    """Check that a file holds all of its voxels. Compressed ones are inflated once and their checksum is compared.

    Raises:
        VolumeError: the header promises more voxels than the file can hold, or they are damaged.
    """
    format = format_of(path)
    wanted = itemsize * int(np.prod(shape, dtype=object))
    on_disk = path.stat().st_size
    stored = _stored(path, format)
    if stored is None:
        limit = on_disk * MAX_COMPRESSION
    else:
        file, offset, is_deflated = stored
        limit = (file.stat().st_size - offset) * (MAX_COMPRESSION if is_deflated else 1)
    if wanted > limit:
        raise VolumeError(
            f"{path}: truncated or a false header: shape {shape} needs {wanted} bytes and the file has "
            f"{on_disk}; copy or export the image again"
        )
    if stored is not None and is_deflated:
        _check_compressed(path, format, file, offset, wanted)


def _stored(path: Path, format: str) -> tuple[Path, int, bool] | None:
    """Return the file with the voxels, the byte at which they begin, and whether they are deflated.

    Returns None if they are text, compressed in another way, or spread over several files.
    """
    with path.open("rb") as stream:
        start = stream.read(HEADER_BYTES)

    def field(pattern: bytes) -> bytes:
        found = re.search(rb"(?mi)^" + pattern + rb"\s*$", start)
        return found[1] if found else b""

    if format == "nrrd":
        encoding = field(rb"encoding:\s*(\w+)").lower()
        is_known = encoding in (b"raw", b"gzip", b"gz") and not re.search(rb"(?mi)^(line|byte) ?skip:", start)
        is_deflated, name = encoding != b"raw", field(rb"data ?file:\s*(.+?)")
        end = re.search(rb"\r?\n\r?\n", start)
    else:
        is_known = field(rb"BinaryData\s*=\s*(\w+)").lower() in (b"true", b"t", b"1")
        is_deflated, name = field(rb"CompressedData\s*=\s*(\w+)").lower() in (b"true", b"t", b"1"), field(DATA_FILE)
        end = re.search(rb"(?mi)^" + DATA_FILE + rb"\s*?(?:\n|\Z)", start)
        name = b"" if name.upper() == b"LOCAL" else name
        if is_deflated and not name and not re.search(rb"(?m)^CompressedDataSize\s*=\s*[1-9]", start):
            # MetaIO reads undefined memory without this size.
            raise VolumeError(f"{path}: damaged: its header states no CompressedDataSize; export the image again")
    if not is_known:
        return None
    if not name:
        return None if end is None else (path, end.end(), is_deflated)
    voxels = path.parent / name.decode("utf-8", "replace")
    return (voxels, 0, is_deflated) if _is_file(voxels) else None


def _check_compressed(path: Path, format: str, file: Path, offset: int, wanted: int) -> None:
    """Inflate the voxels once to compare their number and their checksum."""
    inflate, count = zlib.decompressobj(AUTO_WBITS), 0
    with file.open("rb") as stream:
        stream.seek(offset)
        try:
            while not inflate.eof and (chunk := inflate.unconsumed_tail or stream.read(CHUNK_BYTES)):
                count += len(inflate.decompress(chunk, CHUNK_BYTES))
        except zlib.error as error:
            raise VolumeError(f"{path}: damaged ({error}); copy or export the image again") from error
    if count > wanted and format == "mha":  # MetaIO cannot inflate these
        raise VolumeError(f"{path}: holds {count} bytes of voxels and its header promises {wanted}; correct the header")
    if count < wanted or not inflate.eof:
        raise VolumeError(
            f"{path}: truncated: {wanted} bytes of voxels and their checksum are promised and {count} are there; copy "
            "or export the image again"
        )
