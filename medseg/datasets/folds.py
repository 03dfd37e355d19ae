"""Choose the cases for training, validation and testing, and list their files."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from medseg.datasets.catalogue import read_manifest
from medseg.datasets.manifest import Manifest, shortened
from medseg.errors import ManifestError

PARTS = ("training", "validation", "test")


def fold_cases(manifest: Manifest, fold: int | str, part: str) -> tuple[str, ...]:
    """Return the case ids of one part of a dataset.

    Args:
        manifest: the dataset. If it has no folds, every case is a training case.
        fold: number of the fold to validate on; training uses every other fold except the test fold. With "all",
            training uses every case outside the test fold, and validation uses the first fold that is not the test
            fold. These validation cases **were used for training**: they show that a run works, not how good it is.
        part: "training", "validation" or "test".

    Raises:
        ManifestError: there is no such fold or part, or the fold is the test fold.
    """
    if part not in PARTS:
        raise ManifestError(f"{manifest.name}: unknown part; found {part!r}, expected {', '.join(PARTS)}")
    if part == "test" and manifest.splits:
        chosen = min(manifest.splits) if fold == "all" else _fold_number(manifest, fold, list(manifest.splits))
        return manifest.splits[chosen].test
    if part == "test":
        return manifest.folds[manifest.test_fold] if manifest.test_fold is not None else ()
    numbers = open_folds(manifest)
    number = None if fold == "all" else _fold_number(manifest, fold, numbers)
    if part == "validation":
        if not numbers:
            return ()
        shown = numbers[0] if number is None else number
        return manifest.splits[shown].validation if manifest.splits else manifest.folds[shown]
    if number is not None and manifest.splits:
        return manifest.splits[number].training
    left_out = [n for n in (number, manifest.test_fold) if n is not None]
    excluded = {case for n in left_out for case in manifest.folds[n]}
    return tuple(case for case in manifest.case_ids if case not in excluded)


def open_folds(manifest: Manifest) -> list[int]:
    """Return the numbers of all folds of a dataset except the test fold."""
    return [number for number in (*manifest.folds, *manifest.splits) if number != manifest.test_fold]


def case_files(
    manifest: Manifest | Path | str,
    root: Path | str,
    fold: int | str = "all",
    part: str = "training",
    missing: Literal["error", "skip"] = "error",
    fold_set: str | None = None,
) -> list[dict[str, Any]]:
    """List the files of one part as the dictionaries that MONAI's datasets take.

    Args:
        manifest: the dataset, or its name or path as in ``read_manifest``.
        root: its folder.
        fold: as in ``fold_cases``.
        part: "training", "validation" or "test".
        missing: "error" raises if files of a case are missing; "skip" leaves such cases out with one warning that
            names them.
        fold_set: name of one of the manifest's `fold_sets`; None for its own folds.

    Returns:
        One dictionary per case: "image" (a path, or a list with one path per channel), "label", "instances" if the
        manifest declares them, and "case" (the id).

    Raises:
        ManifestError: files are missing and ``missing`` is "error", no case of a part is present, or the fold leaves
            no case for training.
    """
    manifest = manifest if isinstance(manifest, Manifest) else read_manifest(manifest)
    manifest = manifest if fold_set is None else manifest.with_folds(fold_set)
    if missing not in ("error", "skip"):
        raise ManifestError(f"{manifest.name}: missing must be error or skip; found {missing!r}")
    wanted = fold_cases(manifest, fold, part)
    if part == "training" and not wanted:
        test_fold = "" if manifest.test_fold is None else f" besides the test fold {manifest.test_fold}"
        raise ManifestError(
            f"{manifest.name}: fold {fold} leaves no case for training, because there is no other fold{test_fold}; "
            "add a fold to the manifest, or train on fold all"
        )
    present, absent = split_by_presence(manifest, root, wanted)
    if absent and (missing == "error" or not present):
        first = next(path for path in _all_paths(manifest, root, absent[0]) if not path.is_file())
        if first.is_dir():
            raise ManifestError(
                f"{manifest.name}: case {absent[0]} has the folder {first} where one file per image is expected; "
                "convert a DICOM series, such as with dcm2niix, and correct the manifest"
            )
        raise ManifestError(
            f"{manifest.name}: {len(absent)} of {len(wanted)} {part} cases are missing under {root}: "
            f"{shortened(absent)} (no file {first}); prepare the dataset or correct the folder"
        )
    if absent:
        warnings.warn(
            f"{manifest.name}: {len(absent)} of {len(wanted)} {part} cases are missing under {root} and are left out: "
            f"{shortened(absent)}",
            stacklevel=2,
        )
    return [_record(manifest, root, case_id) for case_id in present]


def split_by_presence(manifest: Manifest, root: Path | str, case_ids: Iterable[str]) -> tuple[list[str], list[str]]:
    """Split case ids into those whose files all exist under ``root`` and those with a missing file."""
    present: list[str] = []
    absent: list[str] = []
    for case_id in case_ids:
        is_present = all(path.is_file() for path in _all_paths(manifest, root, case_id))
        (present if is_present else absent).append(case_id)
    return present, absent


def _fold_number(manifest: Manifest, fold: int | str, numbers: list[int]) -> int:
    number = int(fold) if isinstance(fold, str) and fold.isdecimal() else fold
    known = ", ".join(map(str, numbers)) or "none"
    if number == manifest.test_fold:
        raise ManifestError(f"{manifest.name}: fold {number} is the test fold; choose one of {known}")
    if number not in numbers:
        raise ManifestError(f"{manifest.name}: no fold {fold!r}; choose one of {known}, or all")
    return int(number)


def _all_paths(manifest: Manifest, root: Path | str, case_id: str) -> list[Path]:
    return [path for paths in manifest.paths(root, case_id).values() for path in paths]


def _record(manifest: Manifest, root: Path | str, case_id: str) -> dict[str, Any]:
    files = manifest.paths(root, case_id)
    record: dict[str, Any] = {role: str(paths[0]) for role, paths in files.items()}
    if len(files["image"]) > 1:
        record["image"] = [str(path) for path in files["image"]]
    return record | {"case": case_id}
