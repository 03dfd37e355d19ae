"""Files of an earlier training in the same folder: kept under another name, never overwritten."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path


def set_files_aside(files: Sequence[Path]) -> None:
    """Rename those of the files that are there to names with the first number free for all of them, and say so."""
    found = [file for file in files if file.exists()]
    number = 1
    while any(file.with_stem(f"{file.stem}_{number}").exists() for file in found):
        number += 1
    for file in found:
        earlier = file.rename(file.with_stem(f"{file.stem}_{number}"))
        warnings.warn(f"{file}: is of another training, renamed to {earlier.name}", stacklevel=3)


def move_aside(files: Sequence[Path], folder: Path) -> None:
    """Move the files, if any, into a new folder: this name with the first free number; and say so."""
    if not files:
        return
    number = 1
    while (target := folder.with_name(f"{folder.name}_{number}")).exists():
        number += 1
    target.mkdir()
    for file in files:
        file.rename(target / file.name)
    warnings.warn(f"{files[0].parent}: holds events of another training, moved to {target.name}", stacklevel=3)
