"""Collect the cases that a list of inputs names: files, folders, globs, and channels by nnU-Net's `_0000` suffixes."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path

from medseg.errors import GeometryError, VolumeError
from medseg.volumes import holds_dicom, is_dicom, is_zarr, read_channel_grid, stem_of, suffix_of

CHANNEL_SUFFIX = re.compile(r"^(?P<case>.+)_(?P<channel>\d{4})$")
WEIGHTS = (".pt", ".safetensors")


@dataclass(frozen=True)
class Case:
    """One scan to segment.

    Args:
        name: file name of the output without its suffix.
        paths: one image per channel.
        problem: why the case cannot be predicted, in one line; "" if nothing is known to be wrong.
    """

    name: str
    paths: tuple[Path, ...]
    problem: str = ""


def find_cases(inputs: Iterable[str | Path], num_channels: int = 1, exclude: Path | None = None) -> list[Case]:
    """Collect the cases that the inputs name, in order.

    A file is a case. Files named `<case>_0000`, `<case>_0001`, … are the channels of one case. For a model with one
    channel, `<case>_0000` alone is the case `<case>`, and several such files are separate cases whose names end with a
    number. A folder stands for the images in it and in the folders directly below it, and for DICOM series in it and
    in these folders. A folder without any of these is one case. DICOM files of one series are one case, too.

    Args:
        inputs: files, folders or glob patterns.
        num_channels: number of channels of a case.
        exclude: a folder, such as the output folder, whose files are left out unless an input names it.

    Raises:
        VolumeError: an input is empty, looks like weights or matches no file, or two cases have the same name. A case
            without all of its channels is returned with its `problem`.
    """
    files: list[Path] = []
    for given in inputs:
        files += _expand(given, None if exclude is None else resolved(exclude))
    channels: dict[tuple[Path, str], dict[int, Path]] = defaultdict(dict)
    for path in _gathered(files):
        match = CHANNEL_SUFFIX.match(stem_of(path)) if suffix_of(path) else None
        name = match["case"] if match else stem_of(path)
        number = int(match["channel"]) if match else 0
        first = channels[path.parent, name].setdefault(number, path)
        if resolved(first) != resolved(path):
            raise VolumeError(
                f"{path}: is the same case {name!r} and channel as {first}; rename one, or predict them separately"
            )
    cases = [case for (_, name), numbered in channels.items() for case in _cases(name, numbered, num_channels)]
    by_name: dict[str, Case] = {}
    for case in cases:
        earlier = by_name.get(case.name)
        if earlier is not None and list(map(resolved, earlier.paths)) == list(map(resolved, case.paths)):
            continue  # the same files by another path
        if earlier is not None:
            raise VolumeError(
                f"{case.paths[0]}: would be written under the name of {earlier.paths[0]}; predict them into "
                "separate folders"
            )
        by_name[case.name] = case
    return list(by_name.values())


def resolved(path: Path) -> Path:
    """Resolve links. A loop of links, for which Path.resolve raises an error, is kept and fails when it is read."""
    return Path(os.path.realpath(path))


def _gathered(files: Sequence[Path]) -> list[Path]:
    """Replace the DICOM files of one series by one path, at the place of the first."""
    dicom = [path for path in files if path.is_file() and is_dicom(path)]
    if not dicom:
        return list(files)
    from medseg.volumes.dicom.series_files import one_path_per_series

    first = files.index(dicom[0])
    return [*files[:first], *one_path_per_series(dicom), *(path for path in files[first:] if path not in set(dicom))]


def _expand(given: str | Path, exclude: Path | None) -> list[Path]:
    if not str(given).strip():
        raise VolumeError("an input is empty; give a file, a folder or a pattern")
    path = Path(given)
    if path.suffix.lower() in WEIGHTS:
        raise VolumeError(f"{path}: looks like weights; give --weights before each file")
    if not path.exists() and has_magic(str(given)):
        found = sorted(Path(p) for p in glob(str(given), recursive=True))  # noqa: PTH207 - patterns may be absolute
        start = next(folder for folder in path.parents if not has_magic(str(folder)))
        if exclude is not None and not resolved(start).is_relative_to(exclude):
            found = [p for p in found if not resolved(p).is_relative_to(exclude)]
        if not found:
            raise VolumeError(f"{given}: the pattern matches no file; check the folder and the quotes around it")
        return [file for each in found for file in _expand(each, exclude)] if found != [path] else found
    if path.is_dir() and not is_zarr(path):
        return _images_below(path, exclude) or [path]
    return [path]


def _images_below(folder: Path, exclude: Path | None) -> list[Path]:
    below = sorted(child for child in folder.iterdir() if not child.name.startswith("."))
    images = [child for child in below if suffix_of(child) and (is_zarr(child) or not child.is_dir())]
    for child in below:
        if child.is_dir() and not is_zarr(child) and resolved(child) != exclude:
            inside = sorted(p for p in child.iterdir() if suffix_of(p) and not p.name.startswith("."))
            images += [*inside, *([child] if is_dicom(child) and holds_dicom(child) else [])]
    if images and holds_dicom(folder):
        images.append(folder)
    return images


def _cases(name: str, numbered: dict[int, Path], num_channels: int) -> list[Case]:
    """Return the cases of one name: one with all channels, or one per file for a model with one channel.

    Several channels may also be in one file.
    """
    paths: Sequence[Path] = [numbered[number] for number in sorted(numbered)]
    if num_channels == 1 and list(numbered) != [0]:
        return [Case(stem_of(path), (path,)) for path in paths]
    if num_channels > 1 and list(numbered) == [0] and _num_channels(numbered[0]) == num_channels:
        return [Case(name, (numbered[0],))]
    if sorted(numbered) != list(range(num_channels)):
        found = ", ".join(f"{number:04d}" for number in sorted(numbered))
        problem = (
            f"{paths[0]}: the model takes {num_channels} channels, named {name}_0000 to {name}_{num_channels - 1:04d} "
            f"or in one file; found {found}; add or rename files"
        )
        return [Case(name, tuple(paths), problem)]
    return [Case(name, tuple(paths))]


def _num_channels(path: Path) -> int:
    """Return the number of channels in a file; 0 if it cannot be read, which is reported when it is predicted."""
    try:
        return read_channel_grid(path)[1]
    except (VolumeError, GeometryError):
        return 0
