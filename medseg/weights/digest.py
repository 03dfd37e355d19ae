"""The fingerprint of a weights file."""

from pathlib import Path

from medseg.errors import WeightsError
from medseg.volumes.digest import file_sha256


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of the file at `path`, 64 hexadecimal digits.

    Raises:
        WeightsError: the file cannot be read.
    """
    try:
        return file_sha256(path)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from error
