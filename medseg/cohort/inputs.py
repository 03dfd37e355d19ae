"""Collect the scans of a cohort from folders, patterns, tables and manifests, on disk or in any fsspec file system."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medseg.datasets import read_manifest
from medseg.errors import OptionError, VolumeError, one_line
from medseg.inference.cases import Case, find_cases
from medseg.volumes import is_zarr, stem_of, suffix_of

TABLES = (".csv", ".tsv")
MANIFESTS = (".yaml", ".yml")


@dataclass(frozen=True)
class CohortCase:
    """One scan of a cohort.

    Args:
        name: file name of the output without its suffix.
        paths: local path or URL of the image of each channel.
        problem: why the scan cannot be predicted, in one line; "" if nothing is known to be wrong.
    """

    name: str
    paths: tuple[str, ...]
    problem: str = ""

    @property
    def is_remote(self) -> bool:
        """True if the images must be copied before they can be read."""
        return any(is_url(path) for path in self.paths)

    def to_case(self) -> Case:
        """Return the case with local paths."""
        return Case(self.name, tuple(Path(path) for path in self.paths), self.problem)


def is_url(path: str | Path) -> bool:
    """Return whether a path names a file of an fsspec file system, such as s3://bucket/scan.nii.gz."""
    return "://" in str(path)


def file_system(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and the path in it.

    Raises:
        OptionError: fsspec, or its package for this protocol, is not installed or not configured.
    """
    try:
        import fsspec

        return fsspec.core.url_to_fs(url)
    except Exception as error:  # each protocol raises errors of its own
        raise OptionError(
            f"{url}: cannot be opened ({one_line(error)}); install fsspec and its package for this protocol, and check "
            "the address"
        ) from error


def find_cohort(inputs: Iterable[str | Path], num_channels: int = 1, exclude: Path | None = None) -> list[CohortCase]:
    """Collect the cases that the inputs name, in order.

    Args:
        inputs: files, folders, patterns, CSV or TSV files, manifests of data sets, or URLs of files, folders and
            patterns. A table has one row per case, a column `case` with its name (optional) and one column per channel
            whose name begins with `image`, with paths relative to the table. A manifest names the images below its own
            folder.
        num_channels: number of channels of a case. Channels of files are found by `_0000`, `_0001`, … in their names.
        exclude: a folder, such as the output folder, whose files are left out.

    Raises:
        OptionError: a table or manifest cannot be used.
        VolumeError: as `medseg.inference.find_cases`.
    """
    cases: list[CohortCase] = []
    plain: list[str | Path] = []
    for given in inputs:
        suffix = Path(str(given)).suffix.lower()
        if suffix in TABLES:
            cases += _from_table(str(given), num_channels)
        elif suffix in MANIFESTS and not is_url(given):
            cases += _from_manifest(Path(given), num_channels)
        elif is_url(given):
            cases += _from_url(str(given), num_channels)
        else:
            plain.append(given)
    if plain:
        found = find_cases(plain, num_channels, exclude)
        cases += [CohortCase(c.name, tuple(str(path) for path in c.paths), c.problem) for c in found]
    by_name: dict[str, CohortCase] = {}
    for case in cases:
        earlier = by_name.setdefault(case.name, case)
        if earlier.paths != case.paths:
            raise VolumeError(
                f"{case.paths[0]}: would be written under the name of {earlier.paths[0]}; rename one, or predict them "
                "into separate folders"
            )
    if not by_name:
        raise VolumeError("the inputs name no scan; give files, a folder, a pattern, a CSV file or a manifest")
    return list(by_name.values())


def _from_table(path: str, num_channels: int) -> list[CohortCase]:
    if is_url(path):
        system, inside = file_system(path)
        text, folder = system.cat_file(inside).decode("utf-8-sig"), path.rpartition("/")[0] + "/"
    else:
        if not Path(path).is_file():
            raise OptionError(f"{path}: no such table; check the name and the folder")
        text, folder = Path(path).read_text(encoding="utf-8-sig"), f"{Path(path).parent}/"
    rows = list(csv.DictReader(io.StringIO(text), delimiter="\t" if path.lower().endswith(".tsv") else ","))
    columns = sorted(name for name in (rows[0] if rows else {}) if name and name.lower().startswith("image"))
    if len(columns) != num_channels:
        raise OptionError(
            f"{path}: needs {num_channels} column(s) whose names begin with image, one per channel; found "
            f"{', '.join(columns) or 'none'}"
        )
    cases = []
    for number, row in enumerate(rows, 2):
        images = [(row[column] or "").strip() for column in columns]
        if not all(images):
            raise OptionError(f"{path}: line {number} names no image; fill it in or remove the line")
        paths = tuple(image if is_url(image) or Path(image).is_absolute() else folder + image for image in images)
        cases.append(CohortCase((row.get("case") or "").strip() or _name(paths[0]), paths))
    return cases


def _from_manifest(path: Path, num_channels: int) -> list[CohortCase]:
    manifest = read_manifest(path)
    if len(manifest.channels) != num_channels:
        raise OptionError(f"{path}: has {len(manifest.channels)} channel(s), the model takes {num_channels}")
    return [
        CohortCase(case, tuple(str(file) for file in manifest.paths(path.parent, case)["image"]))
        for case in manifest.case_ids
    ]


def _from_url(url: str, num_channels: int) -> list[CohortCase]:
    system, inside = file_system(url)
    protocol = url.partition("://")[0]
    try:
        if any(mark in inside for mark in "*?["):
            found: Sequence[str] = sorted(system.glob(inside))
        elif suffix_of(inside):
            found = [inside]
        else:
            found = sorted(file for file in system.find(inside) if "/." not in file)
    except Exception as error:
        raise VolumeError(f"{url}: cannot be listed ({one_line(error)}); check the address") from error
    images = [file for file in found if suffix_of(file) and not is_zarr(file)]
    if not images:
        raise VolumeError(f"{url}: holds no image that can be copied to a worker; check the address")
    # The rules for names and channels need no files.
    cases = find_cases([Path(file) for file in images], num_channels)
    return [
        CohortCase(case.name, tuple(f"{protocol}://{path.as_posix()}" for path in case.paths), case.problem)
        for case in cases
    ]


def _name(path: str) -> str:
    return stem_of(path.rpartition("/")[2])
