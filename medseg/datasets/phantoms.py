"""Generating the phantom data set as NIfTI files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from medseg.datasets.phantom_cells import PhantomCase, make_phantom_case
from medseg.volumes import Volume, write_volume

FOLDERS = ("images", "labels", "instances")


def generate_phantoms(
    root: Path | str,
    num_cases: int = 24,
    seed: int = 0,
    shape: tuple[int, int, int] = (64, 64, 32),
    first_case: int = 0,
    overwrite: bool = False,
) -> list[str]:
    """Write ``images/``, ``labels/`` and ``instances/`` of phantom_000.nii.gz … under ``root``.

    A case depends on its own number, ``seed`` and ``shape`` alone, so that more cases can be added later and an
    interrupted run goes on where it stopped.

    Args:
        root: the data set's folder; created.
        num_cases: how many.
        seed: of the whole data set.
        shape: voxels along i, j, k.
        first_case: number of the first one.
        overwrite: write cases again that are there already.

    Returns:
        The case ids.
    """
    return [
        _write_case(Path(root), number, seed, shape, overwrite) for number in range(first_case, first_case + num_cases)
    ]


def phantom_case(number: int, seed: int = 0, shape: tuple[int, int, int] = (64, 64, 32)) -> PhantomCase:
    """Case ``number`` of the data set with this seed, in memory."""
    return make_phantom_case(np.random.default_rng([seed, number]), shape)


def phantom_id(number: int) -> str:
    """The id of a case: 7 → "phantom_007"."""
    return f"phantom_{number:03d}"


def _write_case(root: Path, number: int, seed: int, shape: tuple[int, int, int], overwrite: bool) -> str:
    case_id = phantom_id(number)
    files = [root / folder / f"{case_id}.nii.gz" for folder in FOLDERS]
    if overwrite or not _all_there(files):
        case = phantom_case(number, seed, shape)
        like = Volume(array=case.image, grid=case.grid)
        for file, array in zip(files, (case.image, case.label, case.instances), strict=True):
            write_volume(file, array, like)
    return case_id


def _all_there(files: Iterable[Path]) -> bool:
    return all(file.is_file() and file.stat().st_size > 0 for file in files)
