"""Walking a DICOM file's elements before GDCM does, which allocates whatever length an element claims."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from medseg.errors import VolumeError

DEFLATED = "1.2.840.10008.1.2.1.99"
IMPLICIT = "1.2.840.10008.1.2"
BIG_ENDIAN = "1.2.840.10008.1.2.2"
UNDEFINED = 0xFFFFFFFF
# Value representations whose length takes four bytes, after two reserved ones (PS3.5, table 7.1-1).
LONG = frozenset([b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"])
PIXEL_DATA = (0x7FE0, 0x0010)
TRANSFER_SYNTAX = (0x0002, 0x0010)
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
        if tag == TRANSFER_SYNTAX:
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
