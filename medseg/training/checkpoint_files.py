"""Checkpoints on disk: whole or not there, the last ones kept, damaged ones passed over."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from medseg.errors import WeightsError
from medseg.training.state_files import save_state

PREFIX = "training_checkpoint_"


def checkpoint_files(directory: str | Path) -> list[Path]:
    """The checkpoints of a folder, oldest epoch first; none where there is no folder."""
    found = (file for file in Path(directory).glob(f"{PREFIX}*.pt") if file.stem.removeprefix(PREFIX).isdecimal())
    return sorted(found, key=lambda file: int(file.stem.removeprefix(PREFIX)))


def write_checkpoint(directory: Path, epoch: int, state: Mapping[str, Any], keep: int) -> Path:
    """Write the state of an epoch and then, not before, remove all but the `keep` newest.

    The file is written under another name, brought to the disk and renamed, so that at any moment of a crash `keep`
    whole checkpoints remain (fewer in the first epochs).
    """
    path = directory / f"{PREFIX}{epoch}.pt"
    save_state(dict(state), path)
    for old in checkpoint_files(directory)[:-keep]:
        old.unlink()
    for left in directory.glob(f".{PREFIX}*.partial"):  # of a training that was killed while it wrote
        left.unlink(missing_ok=True)
    return path


def read_newest(directory: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest whole checkpoint and its content; each damaged one on the way is named in a warning.

    Returns:
        None where there is no checkpoint at all.

    Raises:
        WeightsError: there are checkpoints and every one is damaged.
    """
    files = checkpoint_files(directory)
    for file in reversed(files):
        try:
            return file, _read(file)
        except Exception as error:  # torch.load raises half a dozen kinds for one torn file
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            warnings.warn(f"{file}: damaged checkpoint, trying the one before ({reason})", stacklevel=2)
    if files:
        raise WeightsError(f"{directory}: all {len(files)} checkpoints are damaged; start again without --resume True")
    return None


def set_aside(directory: str | Path) -> Path | None:
    """Rename a folder that holds checkpoints of another training to one with a number; None where it holds none."""
    directory = Path(directory)
    if not checkpoint_files(directory):
        return None
    number = 1
    while (target := directory.with_name(f"{directory.name}_{number}")).exists():
        number += 1
    return directory.rename(target)


def _read(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()  # the checksums of all records, which torch.load does not promise to compare
    if damaged is not None:
        raise ValueError(f"checksum of {damaged} is wrong")
    return torch.load(path, map_location="cpu", weights_only=True)
