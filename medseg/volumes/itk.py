"""NRRD, MetaImage, PNG and TIFF through SimpleITK, in nibabel's conventions (axis order i, j, k; RAS+ mm).

PNG and TIFF carry no place in a patient: their grid is the identity, one unit a pixel.
"""

from __future__ import annotations

import re
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 (the field's spelling)

from medseg.errors import GeometryError, VolumeError
from medseg.volumes.files import replacing
from medseg.volumes.formats import suffix_of
from medseg.volumes.grid import Grid
from medseg.volumes.pictures import BEST_COMPRESSION, check_png, check_tiff
from medseg.volumes.volume import Volume

HEADER_BYTES = 1 << 16
CHUNK_BYTES = 1 << 20
AUTO_WBITS = 47  # zlib's way to say: a zlib or a gzip header, whichever is there

DATA_FILE = rb"ElementDataFile\s*=\s*(.+?)"
METAIMAGE_TYPES = {
    f"MET_{name}{array}".encode()
    for name in ("ASCII_CHAR", "CHAR", "UCHAR", "SHORT", "USHORT", "INT", "UINT", "LONG", "ULONG", "LONG_LONG",
                 "ULONG_LONG", "FLOAT", "DOUBLE")
    for array in ("", "_ARRAY")
}  # fmt: skip
SIGNATURES = {
    "nrrd": rb"NRRD000\d\s",
    "mha": rb"(?s).*\bNDims\s*=\s*\d",
    "png": rb"\x89PNG\r\n\x1a\n",
    "tiff": rb"II[*+]\x00|MM\x00[*+]",
}


def check_signature(path: Path, format: str) -> None:
    """Raise unless the file begins as its format does and is whole; ITK would print lines of its own about that.

    Raises:
        VolumeError: another kind of file, or one that is cut short or damaged.
    """
    with path.open("rb") as stream:
        start = stream.read(HEADER_BYTES)
    if re.match(SIGNATURES[format], start) is None:
        raise VolumeError(f"{path}: not a {format} file, whatever its name says; export the image again")
    if format == "png":
        check_png(path)
    if format == "tiff":
        check_tiff(path)
    if format == "mha":
        _check_metaimage(path, start)


def _check_metaimage(path: Path, start: bytes) -> None:
    # The name of the file with the voxels ends the header; what looks like a field behind it are voxels.
    end = re.search(rb"(?m)^ElementDataFile\s*=.*$", start)
    fields = dict(re.findall(rb"(?m)^(\w+)\s*=\s*(.*?)\s*$", start[: end.end()] if end else start))
    for name in (b"NDims", b"DimSize", b"ElementType", b"ElementDataFile"):
        if not fields.get(name):
            raise VolumeError(
                f"{path}: truncated or damaged: its header states no {name.decode()}; copy or export the image again"
            )
    if fields[b"ElementType"] not in METAIMAGE_TYPES:
        raise VolumeError(
            f"{path}: its header states the unknown ElementType {fields[b'ElementType'].decode('ascii', 'replace')}; "
            "correct the header"
        )
    voxels = fields[b"ElementDataFile"].decode("utf-8", "replace")
    # LIST and patterns with a % name several files.
    if voxels.upper() != "LOCAL" and not re.match("(?i)LIST|.*%", voxels) and not (path.parent / voxels).is_file():
        raise VolumeError(f"{path}: its header names the file {voxels} with the voxels, which does not exist")
    if len(fields[b"DimSize"].split()) != int(re.match(rb"\d+", fields[b"NDims"])[0]):  # type: ignore[index]
        raise VolumeError(
            f"{path}: its header states {fields[b'NDims'].decode('ascii', 'replace')} axes and the sizes "
            f"{fields[b'DimSize'].decode('ascii', 'replace')}; correct the header"
        )


def check_voxels_on_disk(path: Path, format: str, shape: tuple[int, ...], itemsize: int) -> None:
    """Raise unless the file holds its voxels: long enough where they are raw, whole where they are compressed.

    ITK takes compressed voxels without comparing their checksum, and prints lines of its own where they end early.

    Raises:
        VolumeError: the header promises more voxels than the file can hold, or they are damaged.
    """
    wanted = itemsize * int(np.prod(shape, dtype=object))
    on_disk = path.stat().st_size
    stored = _stored(path, format)
    if stored is None:
        limit = on_disk * BEST_COMPRESSION
    else:
        file, offset, is_deflated = stored
        limit = (file.stat().st_size - offset) * (BEST_COMPRESSION if is_deflated else 1)
    if wanted > limit:
        raise VolumeError(
            f"{path}: truncated or a false header: shape {shape} needs {wanted} bytes and the file has "
            f"{on_disk}; copy or export the image again"
        )
    if stored is not None and is_deflated:
        _check_compressed(path, format, file, offset, wanted)


def _stored(path: Path, format: str) -> tuple[Path, int, bool] | None:
    """The file with the voxels, where they begin, and whether they are deflated rather than raw.

    None where they are text, compressed otherwise, spread over several files, or the format is another.
    """
    if format not in ("nrrd", "mha"):
        return None
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
        is_known = field(rb"BinaryData\s*=\s*(\w+)").lower() == b"true"
        is_deflated, name = field(rb"CompressedData\s*=\s*(\w+)").lower() == b"true", field(DATA_FILE)
        end = re.search(rb"(?mi)^" + DATA_FILE + rb"\s*?\n", start)
        name = b"" if name.upper() == b"LOCAL" else name
    if not is_known:
        return None
    if not name:
        return None if end is None else (path, end.end(), is_deflated)
    voxels = path.parent / name.decode("utf-8", "replace")
    return (voxels, 0, is_deflated) if voxels.is_file() else None


def _check_compressed(path: Path, format: str, file: Path, offset: int, wanted: int) -> None:
    """Inflate the voxels once and throw them away."""
    inflate, count = zlib.decompressobj(AUTO_WBITS), 0
    with file.open("rb") as stream:
        stream.seek(offset)
        try:
            while not inflate.eof and (chunk := inflate.unconsumed_tail or stream.read(CHUNK_BYTES)):
                count += len(inflate.decompress(chunk, CHUNK_BYTES))
        except zlib.error as error:
            raise VolumeError(f"{path}: damaged ({error}); copy or export the image again") from error
    if count > wanted and format == "mha":  # which MetaIO cannot inflate
        raise VolumeError(f"{path}: holds {count} bytes of voxels and its header promises {wanted}; correct the header")
    if count < wanted or not inflate.eof:
        raise VolumeError(
            f"{path}: truncated: {wanted} bytes of voxels and their checksum are promised and {count} are there; copy "
            "or export the image again"
        )


LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
IMAGE_IO = {"nrrd": "NrrdImageIO", "mha": "MetaImageIO", "png": "PNGImageIO", "tiff": "TIFFImageIO"}
WITHOUT_GEOMETRY = ("png", "tiff")
PNG_TYPES = (np.uint8, np.uint16)


def read_itk_grid(path: Path, format: str) -> Grid:
    """The grid of a file from its header; raises as ``read_itk``."""
    reader = _reader(path, format)
    return _grid(reader, _checked_shape(reader, path), path, format)


def read_itk(path: Path, format: str) -> Volume:
    """Read a file of one of the formats of ``IMAGE_IO``.

    Raises:
        VolumeError: damaged, truncated, several components a voxel, or more than three axes.
        GeometryError: an affine that is not finite or is singular.
    """
    reader = _reader(path, format)
    shape = _checked_shape(reader, path)
    check_voxels_on_disk(path, format, shape, numpy_type(reader, path).itemsize)
    grid = _grid(reader, shape, path, format)
    try:
        image = reader.Execute()
    except (RuntimeError, MemoryError) as error:
        raise itk_error(path, error) from error
    array = sitk.GetArrayFromImage(image).T.reshape(shape, order="F")
    return Volume(array=array, grid=grid, path=path, format=format, header=metadata_of(image))


def write_itk(path: Path, array: np.ndarray, like: Volume, format: str) -> None:
    """Write ``array`` on the grid of ``like``.

    Raises:
        VolumeError: the format cannot hold this type, or is split over two files.
        GeometryError: the format has no geometry and ``like`` has one; nothing is written.
    """
    check_grid_fits(path, like, format)
    if format == "png" and (array.ndim != 2 or array.dtype not in PNG_TYPES):
        raise VolumeError(
            f"{path}: not written: PNG holds two-dimensional uint8 or uint16, found {array.ndim}D {array.dtype}; "
            "use .tif, which `medseg predict --format tiff` writes"
        )
    itk_name(path)
    image = to_simpleitk(array, like.grid)
    with replacing(path, suffix=suffix_of(path)) as temporary:
        try:
            sitk.WriteImage(image, str(temporary), useCompression=True)
        except RuntimeError as error:
            raise VolumeError(
                f"{path}: could not be written: {_reason(error)}; check the folder and its space"
            ) from error


def check_grid_fits(path: Path, like: Volume, format: str) -> None:
    """Raise unless a file of that name can keep the grid of ``like``; as ``write_itk``, before there is an array."""
    if suffix_of(path) in (".mhd", ".nhdr"):
        raise VolumeError(f"{path}: not written: header and voxels would be two files; use .mha or .nrrd")
    if format in WITHOUT_GEOMETRY and not np.array_equal(like.grid.affine, np.eye(4)):
        raise GeometryError(
            f"{path}: not written: {format} cannot keep the geometry of {like.name}; use .nii.gz or .nrrd"
        )
    if format == "png" and like.grid.spatial_dims != 2:
        raise VolumeError(
            f"{path}: not written: PNG holds two-dimensional uint8 or uint16, found 3D; use .nii.gz or .nrrd"
        )


def itk_name(path: Path) -> str:
    """A file's name as SimpleITK takes it; one that is no Unicode would end the whole process.

    Raises:
        VolumeError: the name is none.
    """
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError as error:
        raise VolumeError(f"{path}: the name is no valid Unicode, which ITK cannot open; rename it") from error
    return str(path)


def from_simpleitk(image: sitk.Image) -> Volume:
    """A SimpleITK image of one component a voxel as a volume.

    Raises:
        VolumeError: several components, or more than three axes.
    """
    name = Path("image in memory")
    shape = _checked_shape(image, name)
    array = sitk.GetArrayFromImage(image).T.reshape(shape, order="F")
    return Volume(array=array, grid=Grid(shape, affine_of(image)))


def to_simpleitk(array: np.ndarray, grid: Grid) -> sitk.Image:
    """The array (axis order of the grid) as a SimpleITK image (LPS+)."""
    dims = grid.spatial_dims
    affine = LPS_TO_RAS @ grid.affine
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing(grid.spacing)
    image.SetOrigin(affine[:dims, 3].tolist())
    image.SetDirection((affine[:dims, :dims] / grid.spacing).ravel().tolist())
    return image


def affine_of(image: sitk.Image | sitk.ImageFileReader) -> np.ndarray:
    """The RAS+ affine of a SimpleITK image of two or three (or more, trailing) axes."""
    dims = image.GetDimension()
    keep = min(dims, 3)
    direction = np.array(image.GetDirection()).reshape(dims, dims)[:keep, :keep]
    affine = np.eye(4)
    affine[:keep, :keep] = direction * np.array(image.GetSpacing())[:keep]
    affine[:keep, 3] = np.array(image.GetOrigin())[:keep]
    return LPS_TO_RAS @ affine


def metadata_of(image: sitk.Image | sitk.ImageFileReader) -> dict[str, str]:
    """The text fields of a file; those that are no text (damaged bytes) are left out."""
    fields = {}
    for key in image.GetMetaDataKeys():
        with suppress(TypeError, UnicodeError, RuntimeError):
            fields[key] = image.GetMetaData(key)
    return fields


def itk_error(path: Path, error: Exception) -> VolumeError:
    """One line out of ITK's many."""
    return VolumeError(f"{path}: damaged, truncated or not what its name says ({_reason(error)}); export it again")


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = (lines[-1] if lines else type(error).__name__).removeprefix("ITK ERROR: ")
    reason = re.sub(r"^\w+\(0x[0-9a-f]+\): ", "", reason)  # the class and its address in memory
    return "no reason given" if reason == "Reason: Success" else reason.removeprefix("Reason: ")


def _reader(path: Path, format: str) -> sitk.ImageFileReader:
    check_signature(path, format)
    reader = sitk.ImageFileReader()
    reader.SetFileName(itk_name(path))
    reader.SetImageIO(IMAGE_IO[format])
    try:
        reader.ReadImageInformation()
    except (RuntimeError, MemoryError) as error:
        raise itk_error(path, error) from error
    return reader


def _grid(reader: sitk.ImageFileReader, shape: tuple[int, ...], path: Path, format: str) -> Grid:
    try:
        return Grid(shape, np.eye(4) if format in WITHOUT_GEOMETRY else affine_of(reader))
    except GeometryError as error:
        raise GeometryError(f"{path}: {error}") from error


def _checked_shape(image: sitk.ImageFileReader | sitk.Image, path: Path) -> tuple[int, ...]:
    num_components = (
        image.GetNumberOfComponentsPerPixel() if isinstance(image, sitk.Image) else image.GetNumberOfComponents()
    )
    if num_components != 1:
        raise VolumeError(
            f"{path}: has {num_components} components a voxel (RGB or a vector) where one real number "
            "is expected; convert it first"
        )
    shape = tuple(int(size) for size in image.GetSize())
    if min(shape) < 1:
        raise VolumeError(f"{path}: has shape {shape}; every size must be at least 1")
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > 3:
        raise VolumeError(
            f"{path}: has shape {shape} ({len(shape)}D) where 3D is expected; split it into one file a channel or time"
        )
    return shape


def numpy_type(reader: sitk.ImageFileReader, path: Path) -> np.dtype:
    """The voxel type that a reader's header announces.

    Raises:
        VolumeError: RGB, complex, or another type that is not one real number.
    """
    types: dict[int, type] = {
        sitk.sitkUInt8: np.uint8,
        sitk.sitkInt8: np.int8,
        sitk.sitkUInt16: np.uint16,
        sitk.sitkInt16: np.int16,
        sitk.sitkUInt32: np.uint32,
        sitk.sitkInt32: np.int32,
        sitk.sitkUInt64: np.uint64,
        sitk.sitkInt64: np.int64,
        sitk.sitkFloat32: np.float32,
        sitk.sitkFloat64: np.float64,
    }
    kind = reader.GetPixelID()
    if kind not in types:
        name = sitk.GetPixelIDValueAsString(kind)
        raise VolumeError(f"{path}: has voxels of type {name} where one real number is expected; convert it first")
    return np.dtype(types[kind])
