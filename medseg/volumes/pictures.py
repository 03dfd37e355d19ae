"""Whether a PNG or TIFF file is whole, asked before ITK reads it.

libpng and libtiff print lines of their own about damage, and SimpleITK offers no way to ask them not to.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from medseg.errors import VolumeError

# Deflate reaches about 1032:1 and LZW about 1400:1; a header that promises more than this is not honest.
BEST_COMPRESSION = 1500
PNG_SIGNATURE_BYTES = 8
CHUNK_BYTES = 1 << 20
# Bytes of one value of each TIFF type, by its number.
TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
TIFF_NUMBERS = {3: "H", 4: "I", 16: "Q"}
OFFSETS_AND_COUNTS = ((273, 279), (324, 325))  # of strips, of tiles


def check_png(path: Path) -> None:
    """Raise unless every chunk of a PNG is there with its own checksum, and its sizes are possible.

    Raises:
        VolumeError: cut short, damaged, or a false header.
    """
    on_disk = path.stat().st_size
    with path.open("rb") as stream:
        stream.seek(PNG_SIGNATURE_BYTES)
        kind = b""
        while kind != b"IEND":
            head = stream.read(8)
            length, kind = struct.unpack(">I4s", head) if len(head) == 8 else (on_disk, b"")
            if stream.tell() + length + 4 > on_disk:
                raise VolumeError(f"{path}: truncated: the end of the PNG is absent; copy or export the image again")
            start = stream.read(min(length, CHUNK_BYTES))
            checksum, left = zlib.crc32(start, zlib.crc32(kind)), length - len(start)
            while left:
                part = stream.read(min(left, CHUNK_BYTES))
                checksum, left = zlib.crc32(part, checksum), left - len(part)
            if stream.read(4) != struct.pack(">I", checksum):
                raise VolumeError(f"{path}: damaged (a checksum is wrong); copy or export the image again")
            if kind == b"IHDR":
                _check_png_shape(path, struct.unpack_from(">II", start.ljust(8, b"\0")), on_disk)


def _check_png_shape(path: Path, shape: tuple[int, ...], on_disk: int) -> None:
    if 0 in shape or shape[0] * shape[1] > 8 * BEST_COMPRESSION * on_disk:
        raise VolumeError(f"{path}: truncated or a false header: shape {shape} in {on_disk} bytes; export it again")


def check_tiff(path: Path) -> None:
    """Raise unless everything that a TIFF's directories point to lies in the file.

    Raises:
        VolumeError: cut short, or a directory that points beyond the file.
    """
    on_disk = path.stat().st_size
    with path.open("rb") as stream:
        try:
            for tags in _directories(stream):
                for offsets, counts in OFFSETS_AND_COUNTS:
                    for begin, length in zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False):
                        if begin + length > on_disk:
                            raise EOFError
        except EOFError as error:
            raise VolumeError(
                f"{path}: truncated: its directory points beyond its {on_disk} bytes; copy or export the image again"
            ) from error


def _directories(stream: BinaryIO) -> Iterator[dict[int, tuple[int, ...]]]:
    """The whole numbers of each directory by tag.

    Raises:
        EOFError: a value lies beyond the end.
    """
    order = "<" if stream.read(2) == b"II" else ">"
    is_big = struct.unpack(order + "H", _exactly(stream, 2))[0] == 43
    count_code, offset_code, entry_size = ("Q", "Q", 20) if is_big else ("H", "I", 12)
    stream.seek(8 if is_big else 4)
    seen: set[int] = set()
    (place,) = struct.unpack(order + offset_code, _exactly(stream, struct.calcsize(offset_code)))
    while place and place not in seen:
        seen.add(place)
        stream.seek(place)
        (count,) = struct.unpack(order + count_code, _exactly(stream, struct.calcsize(count_code)))
        entries = _exactly(stream, count * entry_size)
        (place,) = struct.unpack(order + offset_code, _exactly(stream, struct.calcsize(offset_code)))
        tags: dict[int, tuple[int, ...]] = {}
        for first in range(0, len(entries), entry_size):
            tag, kind, number = struct.unpack_from(order + "HH" + offset_code, entries, first)
            size = TIFF_SIZES.get(kind, 1) * number
            inside = struct.calcsize(offset_code)
            value = entries[first + entry_size - inside : first + entry_size]
            if size > inside:
                stream.seek(struct.unpack(order + offset_code, value)[0])
                value = _exactly(stream, size)
            if kind in TIFF_NUMBERS:
                tags[tag] = struct.unpack_from(f"{order}{number}{TIFF_NUMBERS[kind]}", value)
        yield tags


def _exactly(stream: BinaryIO, size: int) -> bytes:
    """That many bytes; none is asked for that the file cannot hold."""
    place, end = stream.tell(), stream.seek(0, 2)
    stream.seek(place)
    if place + size > end:
        raise EOFError
    return stream.read(size)
