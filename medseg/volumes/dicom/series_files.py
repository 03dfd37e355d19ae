"""Tell which files of a folder are DICOM, which of them are images, and which belong to one series."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from medseg.errors import VolumeError
from medseg.volumes.formats import DICOM_SUFFIXES

if TYPE_CHECKING:  # pydicom takes time to import, and files of other formats do not need it
    from pydicom import Dataset

IDENTITY = ["SOPClassUID", "SeriesInstanceUID", "Rows"]
# Groups and largest elements that a file without DICOM's preamble begins with, and the usual length of these elements.
FIRST_ELEMENTS = {0x0002: 0x0010, 0x0008: 0x0020}
MAX_FIRST_LENGTH = 1024


def dicom_files(folder: Path) -> list[Path]:
    """Return the files in a folder that look like DICOM, by name.

    Raises:
        VolumeError: there is none.
    """
    files = sorted(file for file in folder.iterdir() if file.is_file() and looks_like_dicom(file))
    if not files:
        kind = "a folder without DICOM images" if any(folder.iterdir()) else "an empty folder"
        raise VolumeError(f"{folder}: {kind}; name the folder of the series or an image file")
    return files


def looks_like_dicom(path: Path) -> bool:
    """Return whether a file has DICOM's suffix, its preamble, or its first elements without the preamble.

    The index of a disc (DICOMDIR) is not an image.
    """
    if path.name.upper() == "DICOMDIR" or path.name.startswith("."):
        return False
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    with path.open("rb") as stream:
        start = stream.read(132)
    return start[128:] == b"DICM" or begins_with_elements(start)


def begins_with_elements(start: bytes) -> bool:
    """Return whether a file begins with the elements of a data set, little-endian, without DICOM's preamble."""
    group, element = int.from_bytes(start[:2], "little"), int.from_bytes(start[2:4], "little")
    if len(start) < 16 or element > FIRST_ELEMENTS.get(group, -1):
        return False
    from pydicom.valuerep import VR

    return start[4:6] in {vr.value.encode() for vr in VR} or int.from_bytes(start[4:8], "little") <= MAX_FIRST_LENGTH


def read_elements(source: Path | Any, start: bytes, **options: Any) -> Dataset:
    """Read elements with pydicom, which takes files without a preamble only on request.

    Args:
        source: a path, or a file or memory map that is open.
        start: first bytes of the file.
        options: of `pydicom.dcmread`.
    """
    from pydicom import dcmread

    return dcmread(source, force=start[128:132] != b"DICM" and begins_with_elements(start), **options)


def object_kind(dataset: Dataset) -> str:
    """Return what an object is if it is no image, such as "Basic Text SR Storage"; "" for an image.

    Objects without a class count as images, so that a damaged slice is never left out.
    """
    from pydicom.uid import UID

    uid = UID(str(dataset.get("SOPClassUID") or "").strip())
    if not uid:
        return ""
    if uid.name != str(uid):
        return "" if "Image" in uid.name else uid.name
    return "" if "Rows" in dataset else f"class {uid}"


def series_files(path: Path) -> list[Path]:
    """Return the DICOM files of a folder, or those beside a file that belong to its series.

    Objects beside it that are no images are returned as well, so that they can be named, and so are files whose series
    cannot be read, which may be damaged slices.

    Args:
        path: the folder or file.
    """
    if path.is_dir():
        return dicom_files(path)
    own = _identity(path)
    if own is None or not own[0] or path.name.startswith("."):
        return [path]
    beside = [(file, _identity(file)) for file in dicom_files(path.parent)]
    return [file for file, found in beside if file == path or found is None or found[1] or found[0] == own[0]]


def one_path_per_series(paths: Iterable[Path]) -> list[Path]:
    """Replace the files of each DICOM series among some paths by one path.

    Args:
        paths: DICOM files.

    Returns:
        The folder of a series that has it for itself and of which every slice is named, else the first file of each
        series. Objects that are no images are left out beside a series in their folder; alone they stay.
    """
    groups: dict[tuple[Path, str], list[Path]] = {}
    others: list[Path] = []
    for path in dict.fromkeys(paths):
        uid, kind = _identity(path) or ("", "")
        if kind:
            others.append(path)
        else:
            groups.setdefault((path.parent, uid or path.name), []).append(path)
    result = []
    for (folder, _), files in groups.items():
        beside = series_files(files[0])
        is_whole = len(files) > 1 and {*files, *others} >= {*beside} and beside == dicom_files(folder)
        result.append(folder if is_whole else files[0])
    folders = {folder for folder, _ in groups}
    return result + [path for path in others if path.parent not in folders]


def _identity(path: Path) -> tuple[str, str] | None:
    """Return the SeriesInstanceUID of a file and its `object_kind`; None if it cannot be read."""
    try:
        with path.open("rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = read_elements(stream, _start(stream), stop_before_pixels=True, specific_tags=IDENTITY)
            return str(dataset.get("SeriesInstanceUID") or "").strip(), object_kind(dataset)
    except Exception:  # pydicom raises a dozen types for damaged bytes; the reader reports them
        return None


def _start(stream: IO[bytes]) -> bytes:
    start = stream.read(132)
    stream.seek(0)
    return start
