"""The files of a data set as its folder arranges them, before anything is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medseg.volumes import suffix_of


@dataclass(frozen=True)
class CaseFiles:
    """Files of one case: one image per channel, or one for all channels, and the label map."""

    id: str
    images: tuple[Path, ...]
    label: Path
    patient: str = ""


@dataclass(frozen=True)
class Layout:
    """Cases that a folder contains.

    Attributes:
        kind: name of the layout, for messages.
        folder: the data set's folder.
        channels: what distinguishes the file names of the channels, e.g. "t1"; empty for one file per case.
        cases: the cases that are complete, sorted by id.
        problems: one line per file or case that does not fit the layout.
        splits: ids of the cases in each folder named train, val or test, if the folder is divided so.
    """

    kind: str
    folder: Path
    channels: tuple[str, ...]
    cases: tuple[CaseFiles, ...]
    problems: tuple[str, ...] = ()
    splits: dict[str, tuple[str, ...]] = field(default_factory=dict)


def images_in(folder: Path) -> list[Path]:
    """Return the image files directly in a folder, sorted by name, without hidden ones."""
    return sorted(path for path in folder.iterdir() if is_image(path))


def images_below(folder: Path) -> list[Path]:
    """Return the image files in a folder and its subfolders, sorted, without hidden ones."""
    return sorted(path for path in folder.rglob("*") if is_image(path) and not is_hidden(path, folder))


def is_image(path: Path) -> bool:
    """Return whether a path is an image file by its name."""
    return bool(suffix_of(path)) and not path.name.startswith(".") and path.is_file()


def is_hidden(path: Path, folder: Path) -> bool:
    """Return whether a part of a path below a folder begins with a dot."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def folders_in(folder: Path) -> list[Path]:
    """Return the folders directly in a folder, sorted by name, without hidden ones."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def names_of(paths: Iterable[Path], limit: int = 4) -> str:
    """Return the first file names and the number of the others."""
    names = [path.name for path in paths]
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def relative(paths: Sequence[Path], folder: Path) -> list[str]:
    """Return paths below a folder with forward slashes, as a manifest states them."""
    return [path.relative_to(folder).as_posix() for path in paths]
