"""The header of one DICOM image file."""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813 (the field's spelling)

from medseg.errors import GeometryError, VolumeError
from medseg.volumes.formats import check_readable
from medseg.volumes.itk import itk_error, itk_name, metadata_of, numpy_type
from medseg.volumes.pictures import BEST_COMPRESSION

DEFLATED = "1.2.840.10008.1.2.1.99"
IMPLICIT = "1.2.840.10008.1.2"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
UNDEFINED = 0xFFFFFFFF
# Value representations whose length takes four bytes, after two reserved ones (PS3.5, table 7.1-1).
LONG = frozenset([b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"])
PIXEL_DATA = (0x7FE0, 0x0010)
TRANSFER_SYNTAX_TAG = (0x0002, 0x0010)
ITEM_GROUP = 0xFFFE


def check_elements(path: Path) -> str:
    """Raise unless every element up to the pixel data lies within the file.

    Returns:
        The UID of the transfer syntax.

    Raises:
        VolumeError: no DICOM preamble, an element that is none, or one longer than the rest of the file.
    """
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[128:132] != b"DICM":
            raise VolumeError(f"{path}: not a DICOM file, whatever its name says; export it again")
        try:
            start, syntax = _meta_header(content, path)
            if syntax != DEFLATED:
                _walk(content, start, "<" if syntax != BIG_ENDIAN else ">", syntax != IMPLICIT, path)
        except struct.error:
            raise VolumeError(f"{path}: truncated inside an element; copy or export it again") from None
        return syntax


def _meta_header(content: mmap.mmap, path: Path) -> tuple[int, str]:
    """Where the data set starts, and its transfer syntax. The meta header is always explicit and little endian."""
    position, syntax = 132, IMPLICIT
    while position < len(content) and struct.unpack_from("<H", content, position)[0] == 0x0002:
        tag, _, value, length = _element(content, position, "<", True, path)
        if tag == TRANSFER_SYNTAX_TAG:
            syntax = content[value : value + length].rstrip(b"\0 ").decode("ascii", "replace")
        position = value + length
    return position, syntax


def _walk(content: mmap.mmap, position: int, order: str, is_explicit: bool, path: Path) -> None:
    while position < len(content):
        tag, kind, value, length = _element(content, position, order, is_explicit, path)
        if tag == PIXEL_DATA:
            if length == UNDEFINED:
                _fragments(content, value, order, path)
            return
        if kind == b"UN" and length == UNDEFINED:
            return  # a sequence of unknown kind inside is encoded in another way; GDCM has to manage
        holds_items = kind == b"SQ" or content[value : value + 4] == struct.pack(order + "HH", ITEM_GROUP, 0xE000)
        # Sequences and items are entered rather than skipped: what they hold may lie as well.
        is_entered = length == UNDEFINED or tag[0] == ITEM_GROUP or (holds_items and length >= 8)
        position = value if is_entered else value + length


def _fragments(content: mmap.mmap, position: int, order: str, path: Path) -> None:
    """The items of compressed pixel data, up to the delimiter."""
    while position < len(content):
        tag, _, value, length = _element(content, position, order, False, path)
        if tag[0] != ITEM_GROUP or tag[1] == 0xE0DD:
            return
        position = value + length


def _element(
    content: mmap.mmap, position: int, order: str, is_explicit: bool, path: Path
) -> tuple[tuple[int, int], bytes, int, int]:
    """Tag, value representation, offset and length of the value of the element at a position."""
    tag = struct.unpack_from(order + "HH", content, position)
    kind = b""
    if is_explicit and tag[0] != ITEM_GROUP:
        kind = content[position + 4 : position + 6]
        if not (kind.isalpha() and kind.isupper()):
            raise VolumeError(f"{path}: damaged at byte {position}: no DICOM element is there; copy or export it again")
        if kind in LONG:
            value, (length,) = position + 12, struct.unpack_from(order + "I", content, position + 8)
        else:
            value, (length,) = position + 8, struct.unpack_from(order + "H", content, position + 6)
    else:
        value, (length,) = position + 8, struct.unpack_from(order + "I", content, position + 4)
    if length != UNDEFINED and value + length > len(content):
        raise VolumeError(
            f"{path}: truncated or damaged: element ({tag[0]:04x},{tag[1]:04x}) claims {length} bytes and "
            f"{len(content) - value} are left; copy or export it again"
        )
    return tag, kind, value, length


SUFFIXES = (".dcm", ".ima", ".dicom")
UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")

TRANSFER_SYNTAX = "0002|0010"
SLICE_THICKNESS = "0018|0050"
SERIES_UID = "0020|000e"
POSITION = "0020|0032"
ORIENTATION = "0020|0037"
SAMPLES_PER_PIXEL = "0028|0002"
NUM_FRAMES = "0028|0008"
ROWS = "0028|0010"
COLUMNS = "0028|0011"
PIXEL_SPACING = "0028|0030"
BITS_ALLOCATED = "0028|0100"


@dataclass(frozen=True, eq=False)
class DicomSlice:
    """Place and size of one slice in the patient, LPS+ mm.

    Attributes:
        directions: rows: where the column index grows (axis i), where the row index grows (axis j).
        spacing_mm: distance of pixels along i and j.
        position_mm: centre of the first pixel.
        thickness_mm: of the slice; 1 where the file does not say.
        dtype: of the voxels after the rescale slope and intercept.
    """

    path: Path
    series_uid: str
    columns: int
    rows: int
    directions: np.ndarray
    spacing_mm: tuple[float, float]
    position_mm: np.ndarray
    thickness_mm: float
    dtype: np.dtype
    metadata: dict[str, str] = field(repr=False)

    @property
    def normal(self) -> np.ndarray:
        """Unit vector across the image plane."""
        return np.cross(self.directions[0], self.directions[1])

    @property
    def height_mm(self) -> float:
        """Position along the normal."""
        return float(self.position_mm @ self.normal)


def looks_like_dicom(path: Path) -> bool:
    """Whether a file has DICOM's preamble or a name such files have; the index of a disc (DICOMDIR) is none."""
    if path.name.upper() == "DICOMDIR" or path.name.startswith("."):
        return False
    if path.suffix.lower() in SUFFIXES:
        return True
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def read_slice_header(path: Path) -> DicomSlice:
    """Read one file's header.

    Raises:
        VolumeError: damaged, truncated, colour, several frames, or not an image.
        GeometryError: without a usable place in the patient.
    """
    check_readable(path)
    transfer_syntax = check_elements(path)
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(itk_name(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise itk_error(path, error) from error
    tags = {key: value.strip() for key, value in metadata_of(reader).items()}
    tags[TRANSFER_SYNTAX] = transfer_syntax  # ITK does not tell
    if _whole_number(tags, NUM_FRAMES, path, "1") > 1:
        raise VolumeError(f"{path}: holds {tags[NUM_FRAMES]} frames; convert it with a tool such as dcm2niix first")
    if _whole_number(tags, SAMPLES_PER_PIXEL, path, "1") != 1:
        raise VolumeError(f"{path}: is a colour image where one number a voxel is expected; remove it from the series")
    spacing = _numbers(tags, PIXEL_SPACING, 2, path, "pixel spacing")
    if spacing.min() <= 0:
        raise GeometryError(f"{path}: its pixel spacing {tags[PIXEL_SPACING]!r} must be above 0; export it again")
    result = DicomSlice(
        path=path,
        series_uid=tags.get(SERIES_UID, ""),
        columns=_whole_number(tags, COLUMNS, path),
        rows=_whole_number(tags, ROWS, path),
        directions=_directions(tags, path),
        spacing_mm=(float(spacing[1]), float(spacing[0])),  # the tag gives the distance of rows first
        position_mm=_numbers(tags, POSITION, 3, path, "image position"),
        thickness_mm=_thickness(tags),
        dtype=numpy_type(reader, path),
        metadata=tags,
    )
    _check_length(result)
    return result


def _numbers(tags: dict[str, str], tag: str, count: int, path: Path, name: str) -> np.ndarray:
    text = tags.get(tag, "")
    try:
        values = np.array([float(part) for part in text.split("\\")])
    except ValueError:
        values = np.array([])
    if values.shape != (count,) or not np.isfinite(values).all():
        raise GeometryError(
            f"{path}: its {name} ({tag.replace('|', ',')}) must be {count} numbers, found {text!r}; "
            "remove the file if it is no slice of the series"
        )
    return values


def _whole_number(tags: dict[str, str], tag: str, path: Path, default: str = "") -> int:
    text = tags.get(tag) or default
    try:
        return int(text)
    except ValueError:
        raise VolumeError(f"{path}: is no DICOM image ({tag.replace('|', ',')} is {text!r}); remove the file") from None


def _directions(tags: dict[str, str], path: Path) -> np.ndarray:
    directions = _numbers(tags, ORIENTATION, 6, path, "image orientation").reshape(2, 3)
    if not np.allclose(directions @ directions.T, np.eye(2), atol=1e-2):
        raise GeometryError(
            f"{path}: its image orientation {tags[ORIENTATION]!r} is not two unit vectors; export it again"
        )
    return directions


def _thickness(tags: dict[str, str]) -> float:
    try:
        thickness = float(tags.get(SLICE_THICKNESS) or 1)
    except ValueError:
        return 1.0
    return thickness if np.isfinite(thickness) and thickness > 0 else 1.0


def _check_length(item: DicomSlice) -> None:
    wanted = item.columns * item.rows * (_whole_number(item.metadata, BITS_ALLOCATED, item.path, "16") // 8)
    on_disk = item.path.stat().st_size
    is_compressed = item.metadata.get(TRANSFER_SYNTAX) not in UNCOMPRESSED
    if wanted < 1 or wanted > on_disk * (BEST_COMPRESSION if is_compressed else 1):
        raise VolumeError(
            f"{item.path}: truncated: {item.columns}×{item.rows} pixels need {wanted} bytes, the file has {on_disk}; "
            "copy or export it again"
        )
