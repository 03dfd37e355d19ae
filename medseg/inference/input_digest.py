"""What an input held, so that a later run can tell whether it was replaced."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from medseg.volumes import suffix_of
from medseg.volumes.digest import file_sha256

# Headers that name the file with their voxels.
DETACHED = {".mhd": rb"(?im)^ElementDataFile\s*=\s*(.+?)\s*$", ".nhdr": rb"(?im)^data ?file:\s*(.+?)\s*$"}


def input_digest(path: Path) -> str:
    """SHA-256 of a file's content; of a folder (a DICOM series), of the names and contents of its files in order.

    A header that names a file with its voxels (.mhd, .nhdr) is taken together with it.

    Raises:
        OSError: something cannot be read.
    """
    parts = _parts(path)
    if parts == [path]:
        return file_sha256(path)
    lines = "".join(f"{file_sha256(part)}  {part.name}\n" for part in parts)
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def input_digests(paths: Sequence[Path]) -> list[str]:
    """The digest of each input."""
    return [input_digest(path) for path in paths]


def _parts(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(part for part in path.iterdir() if part.is_file())
    if suffix_of(path) in DETACHED:
        named = re.search(DETACHED[suffix_of(path)], path.read_bytes())
        voxels = path.parent / named[1].decode("utf-8", "surrogateescape") if named else path
        return [path, voxels] if voxels != path and voxels.is_file() else [path]
    return [path]
