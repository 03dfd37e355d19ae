"""Writing a file so that it is there whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from medseg.errors import VolumeError


@contextmanager
def replacing(path: Path | str, suffix: str = "") -> Iterator[Path]:
    """Yield a temporary path in the same folder; it becomes ``path`` when the block ends without an error.

    Args:
        path: the file to create or replace. Its folder is created.
        suffix: what the temporary name must end with, for writers that choose the format by the name.

    Raises:
        VolumeError: the folder cannot be written or is full; the temporary file is removed and ``path`` is as before.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.partial{suffix}")
    try:
        if path.is_dir():
            raise VolumeError(f"{path}: a folder is in the way of the output file; remove it or choose another name")
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("r+b") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except VolumeError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise VolumeError(f"{path}: could not be written: {reason}; check the folder and its free space") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
