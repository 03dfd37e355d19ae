"""Whether a file can hold what its header promises, asked before ITK allocates it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from medseg.errors import VolumeError

HEADER_BYTES = 1 << 16
# Deflate reaches about 1032:1 and LZW about 1400:1; a header that promises more than this is not honest.
BEST_COMPRESSION = 1500

PNG_END = b"IEND\xaeB`\x82"
SIGNATURES = {
    "nrrd": rb"NRRD000\d\s",
    "mha": rb"(?s).*\bNDims\s*=\s*\d",
    "png": rb"\x89PNG\r\n\x1a\n",
    "tiff": rb"II[*+]\x00|MM\x00[*+]",
}


def check_signature(path: Path, format: str) -> None:
    """Raise unless the file begins (and a PNG ends) as its format does; ITK would print lines of its own about that.

    Raises:
        VolumeError: another kind of file, or a PNG cut short.
    """
    with path.open("rb") as stream:
        start = stream.read(HEADER_BYTES)
        stream.seek(-min(path.stat().st_size, 1024), 2)
        end = stream.read()
    if re.match(SIGNATURES[format], start) is None:
        raise VolumeError(f"{path}: not a {format} file, whatever its name says; export the image again")
    if format == "png" and PNG_END not in end:
        raise VolumeError(f"{path}: truncated: the end of the PNG is absent; copy or export the image again")


def check_size_on_disk(path: Path, format: str, shape: tuple[int, ...], itemsize: int) -> None:
    """Raise unless the file is long enough for its voxels: exactly where they are stored raw, by the limit of
    compression elsewhere.

    Raises:
        VolumeError: the header promises more voxels than the file can hold.
    """
    wanted = itemsize * int(np.prod(shape, dtype=object))
    on_disk = path.stat().st_size
    start = b""
    if format in ("nrrd", "mha"):
        with path.open("rb") as stream:
            start = stream.read(HEADER_BYTES)
    raw_limit = _raw_bytes(path, format, start, on_disk)
    limit = on_disk * BEST_COMPRESSION if raw_limit is None else raw_limit
    if wanted > limit:
        raise VolumeError(
            f"{path}: truncated or a false header: shape {shape} needs {wanted} bytes and the file has "
            f"{on_disk}; copy or export the image again"
        )


def _raw_bytes(path: Path, format: str, start: bytes, on_disk: int) -> int | None:
    """Bytes of raw voxels in the file, or None where they are compressed, text, or spread over several files."""
    if format == "nrrd":
        is_raw = re.search(rb"^encoding:\s*raw\s*$", start, re.MULTILINE | re.IGNORECASE)
        detached = re.search(rb"^data ?file:\s*(.+?)\s*$", start, re.MULTILINE | re.IGNORECASE)
        end = re.search(rb"\r?\n\r?\n", start)
        name = detached.group(1) if detached else b""
    elif format == "mha":
        is_raw = re.search(rb"^BinaryData\s*=\s*True", start, re.MULTILINE | re.IGNORECASE)
        if re.search(rb"^CompressedData\s*=\s*True", start, re.MULTILINE | re.IGNORECASE):
            return None
        end = re.search(rb"^ElementDataFile\s*=\s*(.+?)\s*?\n", start, re.MULTILINE | re.IGNORECASE)
        name = b"" if end is None or end.group(1) == b"LOCAL" else end.group(1)
    else:
        return None
    if not is_raw or end is None:
        return None
    if not name:
        return on_disk - end.end()
    voxels = path.parent / name.decode("utf-8", "replace")
    return voxels.stat().st_size if voxels.is_file() else None
