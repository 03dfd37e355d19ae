"""Downloading and unpacking a data set's archive through MONAI, with its checksum verified."""

from __future__ import annotations

import logging
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import urlparse

from medseg.datasets.manifest import Manifest
from medseg.errors import ManifestError

STAGING = ".download"


def download_archive(manifest: Manifest, root: Path, progress: bool = True) -> Path:
    """Download and unpack below ``root/.download``; an archive that is there and whole is not downloaded again.

    Returns:
        The folder with the unpacked files; the caller removes ``root/.download`` when it has taken what it needs.

    Raises:
        ManifestError: no way to reach the address, or the archive's md5 differs.
    """
    from monai.apps.utils import HashCheckError, check_hash, download_url, extractall

    source = manifest.source
    assert source.url is not None
    staging = root / STAGING
    archive = staging / PurePosixPath(urlparse(source.url).path).name
    unpacked = staging / "unpacked"
    with _quiet("monai.apps"):
        if archive.exists() and not check_hash(archive, source.md5, "md5"):
            archive.unlink()
        # MONAI takes a non-empty folder for a finished extraction, which an interrupted one also leaves.
        shutil.rmtree(unpacked, ignore_errors=True)
        unpacked.mkdir(parents=True)
        try:
            # Not MONAI's download_and_extract: it asks for the requests package to guess the name of the file.
            download_url(source.url, archive, source.md5, "md5", progress=progress)
            extractall(archive, unpacked, has_base=False)
        except HashCheckError as error:
            raise ManifestError(
                f"{manifest.name}: the archive from {source.url} does not have the md5 {source.md5}; "
                "try again, or get it elsewhere and give its folder with --from"
            ) from error
        except (OSError, RuntimeError, ValueError, tarfile.TarError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ManifestError(
                f"{manifest.name}: {source.url} could not be downloaded and unpacked: {reason}; "
                "without a network give a folder that has the files with --from"
            ) from error
    return unpacked


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """MONAI logs to stdout, where a command's JSON goes; keep it silent, its errors come as exceptions."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
