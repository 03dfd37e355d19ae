"""Determine an image's format from its file name, and check that there is a file to read."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from medseg.errors import ChangedFileError, VolumeError
from medseg.volumes.files import file_sha256

SUFFIXES: dict[str, str] = {
    ".nii": "nifti",
    ".nii.gz": "nifti",
    ".hdr": "nifti",
    ".hdr.gz": "nifti",
    ".mgz": "mgz",
    ".mgh": "mgz",
    ".nrrd": "nrrd",
    ".nhdr": "nrrd",
    ".mha": "mha",
    ".mhd": "mha",
    ".png": "png",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".zarr": "zarr",
    ".ome.zarr": "zarr",
}
# Suffix of an output for each input suffix that is not written: one file is easier to keep together than header and
# voxels, and JPEG is lossy.
WRITTEN_SUFFIX: dict[str, str] = {
    ".hdr": ".nii",
    ".hdr.gz": ".nii.gz",
    ".nhdr": ".nrrd",
    ".mhd": ".mha",
    ".jpg": ".png",
    ".jpeg": ".png",
}
# Suffix of the file with the voxels of a NIfTI or Analyze pair, by that of its header.
PAIR_SUFFIX = {".hdr": ".img", ".hdr.gz": ".img.gz"}
# Line of a header that names the file with its voxels.
NAMED_VOXELS = {".mhd": rb"(?im)^ElementDataFile\s*=\s*(.+?)\s*$", ".nhdr": rb"(?im)^data ?file:\s*(.+?)\s*$"}
DICOM_SUFFIXES = (".dcm", ".ima", ".dicom")
# Not in SUFFIXES: a folder of .dcm files is one image, and a segmentation among them is not a scan.
DICOM_SEG_SUFFIX = ".dcm"


def suffix_of(path: Path | str) -> str:
    """Return the image suffix of a path in lower case, such as ".nii.gz"; "" if medseg does not know it."""
    name = Path(path).name.lower()
    return next((suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if name.endswith(suffix)), "")


def stem_of(path: Path | str) -> str:
    """Return the file name without its image suffix: "scan" for "a/scan.nii.gz"."""
    name = Path(path).name
    return name[: len(name) - len(suffix_of(path))]


def format_of(path: Path | str) -> str:
    """Return the format that a file name stands for.

    Raises:
        VolumeError: the suffix is unknown.
    """
    suffix = suffix_of(path)
    if suffix:
        return SUFFIXES[suffix]
    if Path(path).name.lower().endswith(tuple(PAIR_SUFFIX.values())):
        raise VolumeError(f"{path}: holds the voxels of a header file; name the .hdr file beside it")
    raise VolumeError(f"{path}: not an image name medseg knows; use one of {', '.join(sorted(SUFFIXES))}")


def is_zarr(path: Path | str) -> bool:
    """Return whether a name stands for a Zarr store."""
    return SUFFIXES.get(suffix_of(path)) == "zarr"


def voxel_file(path: Path) -> Path | None:
    """Return the file with the voxels that belongs to a header file, or None if the voxels are in the same file.

    The header of a NIfTI or Analyze pair has a file of the same name beside it. Those of MetaImage and NRRD name it.
    """
    suffix = suffix_of(path)
    if suffix in PAIR_SUFFIX:
        return path.with_name(path.name[: -len(suffix)] + PAIR_SUFFIX[suffix])
    if suffix in NAMED_VOXELS and (found := re.search(NAMED_VOXELS[suffix], path.read_bytes())):
        voxels = path.parent / found[1].decode("utf-8", "surrogateescape")
        return None if voxels == path else voxels
    return None


def files_of(path: Path) -> list[Path]:
    """Return every file that an image consists of: the files of a folder by name, or a header and its voxels.

    A DICOM file stands for its series; see `medseg.volumes.dicom.series_files.series_files`.
    """
    if is_zarr(path):
        from medseg.volumes.zarr_images import files_of_store

        return files_of_store(path)
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.is_file())
    if not suffix_of(path):
        from medseg.volumes.dicom.series_files import series_files

        return series_files(path)
    voxels = voxel_file(path)
    return [path, voxels] if voxels is not None and voxels.is_file() else [path]


def image_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, or of the names and contents of the files of a folder (a DICOM series).

    A header whose voxels are in a second file (.hdr, .mhd, .nhdr) is digested together with that file.

    Raises:
        OSError: something cannot be read.
    """
    parts = files_of(path)
    if parts == [path]:
        return file_sha256(path)
    lines = "".join(f"{file_sha256(part)}  {part.name}\n" for part in parts)
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


@contextmanager
def unchanged(paths: Iterable[Path]) -> Iterator[Callable[[], None]]:
    """Raise an error if an image is replaced or written to while the block reads it.

    What was read, its digest and a copy of it would belong to different images otherwise.

    Args:
        paths: images as `image_sha256` takes them; they may not exist.

    Yields:
        A function that raises the error earlier, e.g. before a copy gets its name.

    Raises:
        ChangedFileError: a file is another one than before the block.
    """
    before = {part: file_state(part) for path in paths for part in _parts(path)}

    def check() -> None:
        for part, state in before.items():
            if file_state(part) != state:
                raise ChangedFileError(
                    f"{part}: was changed while it was read; wait until it is complete, and run the command again"
                )

    try:
        yield check
    except VolumeError:  # such as "truncated", for a file that is being copied
        check()
        raise
    check()


def _parts(path: Path) -> list[Path]:
    try:
        return files_of(path)
    except (OSError, VolumeError):  # reading says why
        return [path]


def file_state(path: Path) -> tuple[int, ...] | None:
    """Return numbers that change when a file is replaced or written to, even if its times are set back.

    Returns:
        None if there is no such file.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def check_readable(path: Path) -> None:
    """Check that a path is a file with at least one byte that this user may read.

    Raises:
        VolumeError: missing, a link to nothing, a folder, not a plain file, unreadable, or zero bytes long.
    """
    if path.is_symlink() and not path.exists():
        raise VolumeError(f"{path}: a link to {path.readlink()}, which does not exist; restore the file or the link")
    if path.is_dir():
        raise VolumeError(f"{path}: a folder where an image file is expected; name the file inside it")
    if not path.exists():
        raise VolumeError(f"{path}: no such file; check the name and the folder")
    if not path.is_file():
        raise VolumeError(f"{path}: not a plain file; copy the image to one")
    if not os.access(path, os.R_OK):
        raise VolumeError(f"{path}: may not be read by this user; change its permissions")
    if path.stat().st_size == 0:
        raise VolumeError(f"{path}: is empty (0 bytes); copy or export the image again")
