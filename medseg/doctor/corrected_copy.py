"""Write a corrected copy of a data set, with a list of what was changed and of what was left."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medseg.datasets import Manifest, replace_values
from medseg.datasets.case_facts import CaseFacts, FileFacts
from medseg.datasets.measure_case import measure_case, read_image_file, read_label_file
from medseg.doctor.examine import Examination
from medseg.doctor.findings import Finding, check_dataset, counted
from medseg.errors import MedsegError, OptionError, VolumeError
from medseg.volumes import Volume, check_out_folder, replacing, write_volume
from medseg.volumes.files import file_sha256
from medseg.volumes.formats import WRITTEN_SUFFIX, files_of, suffix_of
from medseg.volumes.io import as_integers, label_step

logger = logging.getLogger(__name__)

CHANGES_FILE = "changes.json"
# Files at the top of a data set that describe it, and are copied with it.
DESCRIPTIONS = (".json", ".yaml", ".yml", ".tsv", ".csv", ".txt", ".md")
# Room that must stay free on the disk.
SPARE_BYTES = 100 * 1024**2


@dataclass(frozen=True)
class CorrectedCopy:
    """Result of `write_corrected_copy`.

    Args:
        folder: the copy.
        changes: one entry per changed file: case, file, what was changed, SHA-256 before and after.
        left: one line per finding that still holds for the copy.
        num_files: number of files in the copy.
    """

    folder: Path
    changes: tuple[dict[str, Any], ...]
    left: tuple[str, ...]
    num_files: int

    def lines(self) -> list[str]:
        """Return what was changed and left, for the terminal."""
        lines = [f"{self.folder}: {counted(self.num_files, 'file')}, {len(self.changes)} of them corrected"]
        lines += [f"  {change['file']}: {'; '.join(change['changes'])}" for change in self.changes]
        if self.left:
            lines.append(
                f"  {counted(len(self.left), 'finding')} left for a person to decide; {self.folder / CHANGES_FILE} "
                "lists them"
            )
        return lines


def write_corrected_copy(
    examination: Examination,
    folder: Path | str,
    *,
    relabel: Mapping[int, int] | None = None,
    fill_non_finite: float | None = None,
    on_case: Callable[[str, int, int], None] | None = None,
) -> CorrectedCopy:
    """Copy a data set and correct what can be corrected without a doubt. The original is only read.

    A file whose header differs from the image's within the tolerance, or that stores the same voxels in another axis
    order, gets the image's order and header. Label maps of whole numbers that are stored as floating-point numbers get
    an integer type. Everything else is left, unless it is asked for by an argument.

    The copy appears when it is complete. It contains the files of the cases and the descriptions at the top of the
    folder, with a `changes.json`.

    Args:
        examination: the findings about the original.
        folder: folder to create. It must not exist, and not lie in the data set.
        relabel: new value of each value of the label files to replace.
        fill_non_finite: value for voxels that are NaN or infinite; None leaves them.
        on_case: called after each case with its id, the number of finished cases, and the number of cases.

    Raises:
        OptionError: the folder exists, lies in the data set, or cannot be written; the disk is too small; a new value
            of `relabel` is not in the manifest; `fill_non_finite` is not finite.
        VolumeError: the copy cannot be written.
    """
    folder = Path(folder)
    dataset = examination.dataset
    _check(examination, folder, relabel or {}, fill_non_finite)
    fixes: dict[str, set[str]] = defaultdict(set)
    for finding in examination.findings:
        if finding.fix in ("grid", "integers") or (finding.fix == "fill" and fill_non_finite is not None):
            fixes[finding.file].add(finding.fix)
    changes: list[dict[str, Any]] = []
    copied: list[str] = []
    with replacing(folder) as temporary:
        temporary.mkdir()
        for number, (case, facts) in enumerate(dataset.cases.items(), start=1):
            for name in dict.fromkeys(file.path for file in facts.files if not file.is_missing):
                file = next(file for file in facts.files if file.path == name)
                source = Path(dataset.root, file.path)
                done, written = _write_file(
                    source, temporary / file.path, file, facts, dataset.manifest, dataset.root, fixes[file.path],
                    relabel or {}, fill_non_finite,
                )  # fmt: skip
                copied += written
                if done:
                    changes.append(
                        {
                            "case": case,
                            "file": file.path,
                            "changes": done,
                            "sha256_before": file_sha256(source),
                            "sha256_after": file_sha256(temporary / file.path),
                        }
                    )
            if on_case is not None:
                on_case(case, number, len(dataset.cases))
        for path in sorted(dataset.root.iterdir()):
            if path.is_file() and path.suffix.lower() in DESCRIPTIONS and not (temporary / path.name).exists():
                _copy(path, temporary / path.name)
                copied.append(path.name)
        left = tuple(finding.line() for finding in _check_copy(examination, temporary, changes, relabel or {}))
        content = {"original": str(dataset.root.resolve()), "changes": changes, "left": list(left)}
        (temporary / CHANGES_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return CorrectedCopy(folder, tuple(changes), left, len(copied))


def parse_relabel(texts: list[str]) -> dict[int, int]:
    """Read replacements such as "255=1".

    Raises:
        OptionError: a text is something else, or gives two new values to one value.
    """
    table: dict[int, int] = {}
    for text in texts:
        old, _, new = text.partition("=")
        try:
            pair = int(old), int(new)
        except ValueError:
            raise OptionError(f"--relabel: two whole numbers are needed, as in 255=1; found {text!r}") from None
        if table.setdefault(*pair) != pair[1]:
            raise OptionError(f"--relabel: value {pair[0]} gets two new values, {table[pair[0]]} and {pair[1]}")
    return table


def _check(examination: Examination, folder: Path, relabel: Mapping[int, int], fill: float | None) -> None:
    root, allowed = examination.dataset.root.resolve(), examination.dataset.manifest.values_in_files
    if folder.exists():
        raise OptionError(f"{folder}: exists already; give --fix a folder that does not exist")
    if folder.resolve().is_relative_to(root):
        raise OptionError(f"{folder}: lies in the data set {root}; give --fix a folder outside of it")
    check_out_folder(folder.parent)
    unknown = sorted(set(relabel.values()) - set(allowed))
    if unknown:
        raise OptionError(f"--relabel: new values {unknown} are not in the manifest; expected {list(allowed)}")
    if fill is not None and not np.isfinite(fill):
        raise OptionError(f"--fill-non-finite: a finite number is needed; found {fill}")
    needed = sum(
        Path(root, file.path).stat().st_size
        for facts in examination.dataset.cases.values()
        for file in facts.files
        if Path(root, file.path).is_file()
    )
    parent = next(path for path in folder.absolute().parents if path.exists())
    free = shutil.disk_usage(parent).free
    if free < needed + SPARE_BYTES:
        raise OptionError(
            f"{folder}: the disk is too small for a copy; found {free / 1e9:.1f} GB, expected at least "
            f"{(needed + SPARE_BYTES) / 1e9:.1f} GB; choose another disk"
        )


def _write_file(
    source: Path,
    target: Path,
    file: FileFacts,
    facts: CaseFacts,
    manifest: Manifest,
    root: Path,
    fixes: set[str],
    relabel: Mapping[int, int],
    fill: float | None,
) -> tuple[list[str], list[str]]:
    """Copy or correct one file; return what was changed and the names of the written files."""
    target.parent.mkdir(parents=True, exist_ok=True)
    is_relabelled = file.role == "label" and any(
        value in relabel for value in (*file.values, *([0] if file.zeros else []))
    )
    has_one_channel = sum(other.path == file.path for other in facts.files) == 1 and not manifest.has_colored_labels
    if (fixes or is_relabelled) and file.is_readable and has_one_channel and _can_write(source):
        try:
            volume, done = _corrected(
                source, file, facts, manifest, root, fixes, relabel if is_relabelled else {}, fill
            )
            write_volume(target, volume.array, volume)
            return done, [file.path]
        except MedsegError:
            logger.debug("%s: copied without a correction", source, exc_info=True)
    return [], _copy_all(source, target, root)


def _corrected(
    source: Path,
    file: FileFacts,
    facts: CaseFacts,
    manifest: Manifest,
    root: Path,
    fixes: set[str],
    relabel: Mapping[int, int],
    fill: float | None,
) -> tuple[Volume, list[str]]:
    """Return a file with its corrections, and what they are."""
    if file.role == "image":
        volume = read_image_file(manifest, source)[0]
    else:
        volume = read_label_file(manifest, source, file.role)
    done = []
    if "fill" in fixes and fill is not None and file.non_finite:
        filled = np.where(np.isfinite(volume.array), volume.array, np.asarray(fill, volume.array.dtype))
        volume = replace(volume, array=filled)
        done.append(f"{file.non_finite} voxels that were not finite set to {fill:g}")
    is_whole = not file.fractional and (not file.non_finite or "fill" in fixes)
    if file.role != "image" and volume.array.dtype.kind == "f" and is_whole:
        volume = replace(volume, array=as_integers(volume.array, volume.name, label_step(volume)))
        done.append(f"{file.dtype} stored as {volume.array.dtype}")
    if relabel:
        present = [value for value in relabel if value in file.values or (value == 0 and file.zeros)]
        table = {value: relabel.get(value, value) for value in (*file.values, 0)}
        dtype = np.promote_types(volume.array.dtype, np.min_scalar_type(max(table.values(), key=abs)))
        volume = replace(volume, array=replace_values(volume.array, table, dtype))
        done += [f"value {value} replaced by {relabel[value]}" for value in present]
    if "grid" in fixes:
        reference = next(image for image in facts.images if image.is_readable)
        image = read_image_file(manifest, Path(root, reference.path))[0]
        turned = volume.on_grid(image.grid, image.name)
        if turned.grid.orientation == volume.grid.orientation:
            done.append(
                f"header of {reference.path}, {volume.grid.displacement_mm(image.grid):.2g} mm away, taken over"
            )
        else:
            done.append(
                f"axes in the order {volume.grid.orientation} stored as {image.grid.orientation}, and header of "
                f"{reference.path} taken over"
            )
        volume = replace(image, array=turned.array)
    return volume, done


def _can_write(source: Path) -> bool:
    suffix = suffix_of(source)
    return bool(suffix) and suffix not in WRITTEN_SUFFIX


def _copy_all(source: Path, target: Path, root: Path) -> list[str]:
    """Copy a file, the file with its voxels if its header is a file of its own, or a DICOM series."""
    copied = []
    if not source.exists():
        raise VolumeError(f"{source}: disappeared while the copy was made; run the command again")
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    try:
        files = files_of(source)
    except (MedsegError, OSError):
        files = [source]
    for file in files:
        name = file.relative_to(source) if source.is_dir() else Path(file.name)
        place = target / name if source.is_dir() else target.parent / name
        if file.is_file() and not place.exists():
            _copy(file, place)
            copied.append(file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name)
    return copied


def _copy(source: Path, target: Path) -> None:
    """Copy content and times. Permissions are not copied, because the source may be read-only."""
    shutil.copyfile(source, target)
    status = source.stat()
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _check_copy(
    examination: Examination, folder: Path, changes: Iterable[Mapping[str, Any]], relabel: Mapping[int, int]
) -> list[Finding]:
    """Return the findings about the copy; only cases that were changed are measured again."""
    original = examination.dataset
    manifest = original.manifest
    if manifest.path is not None and manifest.path.is_dir() and manifest.file_values is None:
        # Labels that were named by the values in the files end with them.
        kept = {name: value for name, value in manifest.labels.items() if value not in relabel}
        manifest = replace(manifest, labels=kept)
    changed = {change["case"]: measure_case(manifest, folder, change["case"]) for change in changes}
    cases = {case: changed.get(case, facts) for case, facts in original.cases.items()}
    return check_dataset(replace(original, manifest=manifest, root=folder, cases=cases, unlisted=()))
