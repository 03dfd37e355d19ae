"""Writing tensors to a file that is there whole or not at all, whatever the disk says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from medseg.volumes import atomic


def save_state(state: Any, path: Path) -> None:
    """`torch.save` into `path`, which appears when everything is on the disk.

    Through an open file: given a path, torch writes the temporary name into it, and equal weights differ; and of a full
    disk it says "unexpected pos 640 vs 598".

    Raises:
        VolumeError: the folder cannot be written or is full; names the file.
    """
    with atomic.replacing(path) as temporary, temporary.open("wb") as stream:
        try:
            torch.save(state, stream)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
