"""Whether a file can hold what its header promises, asked before ITK allocates it."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import numpy as np

from medseg.errors import VolumeError
from medseg.volumes.picture_headers import BEST_COMPRESSION, check_png, check_tiff

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
