"""Which cases train, validate and test, and where their files are."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from medseg.datasets.manifest import Manifest
from medseg.errors import ManifestError

PARTS = ("training", "validation", "test")


def fold_cases(manifest: Manifest, fold: int | str, part: str) -> tuple[str, ...]:
    """Case ids of one part.

    Args:
        manifest: the data set; without folds every case trains and none validates or tests.
        fold: the validation fold; training then is every other fold but the test fold. "all": training is every case
            outside the test fold, and validation is the first fold that is not the test fold, **which training has
            seen**: it shows that a run works, not how good it is.
        part: "training", "validation" or "test".

    Raises:
        ManifestError: no such fold or part, or the fold is the test fold.
    """
    if part not in PARTS:
        raise ManifestError(f"{manifest.name}: part must be one of {', '.join(PARTS)}, found {part!r}")
    if part == "test":
        return manifest.folds[manifest.test_fold] if manifest.test_fold is not None else ()
    open_folds = [number for number in manifest.folds if number != manifest.test_fold]
    chosen = _validation_fold(manifest, fold, open_folds)
    if part == "validation":
        return manifest.folds[chosen if chosen is not None else open_folds[0]] if open_folds else ()
    if not manifest.folds:
        return manifest.case_ids
    training = {case for number in open_folds if number != chosen for case in manifest.folds[number]}
    return tuple(case for case in manifest.case_ids if case in training)


def case_files(
    manifest: Manifest,
    root: Path | str,
    fold: int | str = "all",
    part: str = "training",
    missing: Literal["error", "skip"] = "error",
) -> list[dict[str, Any]]:
    """The files of one part as the list of dictionaries that MONAI's data sets take.

    Args:
        manifest: the data set.
        root: its folder.
        fold: as in ``fold_cases``.
        part: "training", "validation" or "test".
        missing: what to do about cases whose files are not there: "error", or "skip" with one warning that names them.

    Returns:
        One dictionary a case: "image" (a path, or a list with one a channel), "label", "instances" where the manifest
        declares them, and "case" (its id).

    Raises:
        ManifestError: files are absent and ``missing`` is "error", no case of a part that has some is there, or the
            fold leaves none to train on.
    """
    if missing not in ("error", "skip"):
        raise ManifestError(f"missing must be error or skip, found {missing!r}")
    wanted = fold_cases(manifest, fold, part)
    if part == "training" and not wanted:
        raise ManifestError(
            f"{manifest.name}: fold {fold} leaves no case to train on, there is no other fold"
            f"{'' if manifest.test_fold is None else f' but {manifest.test_fold}, the test fold'}; "
            "add one to the manifest, or train on fold all"
        )
    found, absent = split_by_presence(manifest, root, wanted)
    if absent and (missing == "error" or not found):
        first = next(path for path in _all_paths(manifest, root, absent[0]) if not path.is_file())
        raise ManifestError(
            f"{manifest.name}: {len(absent)} of {len(wanted)} {part} cases are not under {root}: {_some(absent)} "
            f"(no {first}); prepare the data set or correct the folder"
        )
    if absent:
        warnings.warn(
            f"{manifest.name}: {len(absent)} of {len(wanted)} {part} cases are not under {root} and are left out: "
            f"{_some(absent)}",
            stacklevel=2,
        )
    return [_record(manifest, root, case_id) for case_id in found]


def split_by_presence(manifest: Manifest, root: Path | str, case_ids: Iterable[str]) -> tuple[list[str], list[str]]:
    """Split case ids into those whose files are all under ``root`` and those of which at least one is absent."""
    found: list[str] = []
    absent: list[str] = []
    for case_id in case_ids:
        is_there = all(path.is_file() for path in _all_paths(manifest, root, case_id))
        (found if is_there else absent).append(case_id)
    return found, absent


def _validation_fold(manifest: Manifest, fold: int | str, open_folds: list[int]) -> int | None:
    if fold == "all":
        return None
    number = int(fold) if isinstance(fold, str) and fold.isdecimal() else fold
    if number == manifest.test_fold:
        raise ManifestError(
            f"{manifest.name}: fold {number} is the test fold; validate on one of {', '.join(map(str, open_folds))}"
        )
    if number not in manifest.folds:
        known = ", ".join(map(str, open_folds)) or "none"
        raise ManifestError(f"{manifest.name}: has no fold {fold!r}; choose one of {known}, or all")
    return int(number)


def _all_paths(manifest: Manifest, root: Path | str, case_id: str) -> list[Path]:
    return [path for paths in manifest.files.paths(Path(root), case_id).values() for path in paths]


def _record(manifest: Manifest, root: Path | str, case_id: str) -> dict[str, Any]:
    files = manifest.files.paths(Path(root), case_id)
    record: dict[str, Any] = {role: str(paths[0]) for role, paths in files.items()}
    if len(files["image"]) > 1:
        record["image"] = [str(path) for path in files["image"]]
    return record | {"case": case_id}


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
