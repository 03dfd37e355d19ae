"""The fingerprint of a weights file."""

import hashlib
from pathlib import Path

from medseg.errors import WeightsError


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of the file at `path`, 64 hexadecimal digits.

    Raises:
        WeightsError: the file cannot be read.
    """
    try:
        with Path(path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from error
