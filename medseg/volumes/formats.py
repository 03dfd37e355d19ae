"""Which format a path means, and whether there is a file to read at all."""

from __future__ import annotations

import os
from pathlib import Path

from medseg.errors import VolumeError

SUFFIXES: dict[str, str] = {
    ".nii": "nifti",
    ".nii.gz": "nifti",
    ".nrrd": "nrrd",
    ".nhdr": "nrrd",
    ".mha": "mha",
    ".mhd": "mha",
    ".png": "png",
    ".tif": "tiff",
    ".tiff": "tiff",
}

# No suffix of SUFFIXES: a folder of .dcm files is one image, and a segmentation among them is no scan.
DICOM_SEG_SUFFIX = ".dcm"


def suffix_of(path: Path | str) -> str:
    """The image suffix of a path in lower case, ".nii.gz" counted as one; "" where it is none that medseg knows."""
    name = Path(path).name.lower()
    return next((suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if name.endswith(suffix)), "")


def stem_of(path: Path | str) -> str:
    """The file name without its image suffix: "scan" for "a/scan.nii.gz"."""
    name = Path(path).name
    return name[: len(name) - len(suffix_of(path))]


def format_of(path: Path | str) -> str:
    """The format that a path's name means.

    Raises:
        VolumeError: the suffix is none of the known ones.
    """
    suffix = suffix_of(path)
    if not suffix:
        raise VolumeError(f"{path}: not an image name medseg knows; use one of {', '.join(sorted(SUFFIXES))}")
    return SUFFIXES[suffix]


def check_readable(path: Path) -> None:
    """Raise one line unless ``path`` is a file with at least one byte that may be read.

    Raises:
        VolumeError: missing, a dangling link, a folder, not a plain file, unreadable, or zero bytes long.
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
