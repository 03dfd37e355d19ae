"""Check that the files of a case agree with each other and with the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from medseg.datasets.manifest import Manifest
from medseg.errors import GeometryError, ManifestError, VolumeError
from medseg.volumes import Grid, Volume, read_grid, read_label_map, read_volume


def check_case(manifest: Manifest, root: Path | str, case_id: str, read_images: bool = True) -> None:
    """Raise an error if the files of a case cannot be used together.

    Args:
        manifest: the dataset.
        root: its folder.
        case_id: the case.
        read_images: read every voxel of the images; otherwise read only their headers. The label map is always read.

    Raises:
        ManifestError: a file is missing, damaged or not finite; a grid differs from the first channel's in shape or
            by more than half a voxel; or a label value is not in the manifest. The message names the case and the
            file.
    """
    problems = case_problems(manifest, manifest.paths(root, case_id), case_id, read_images)
    if problems:
        raise ManifestError(problems[0])


def case_problems(
    manifest: Manifest, files: Mapping[str, list[Path]], case_id: str, read_images: bool = True
) -> list[str]:
    """Return one line per problem of a case; an empty list if there is none.

    Args:
        manifest: the dataset.
        files: paths by role as ``Manifest.paths`` returns them. They may be in another folder.
        case_id: the case, for the messages.
        read_images: as in ``check_case``.
    """
    problems: list[str] = []
    reference: tuple[Path, Grid] | None = None
    for role, paths in files.items():
        for path in paths:
            try:
                grid = _read_and_check(manifest, role, path, read_images)
                if reference is None:
                    reference = (path, grid)
                else:
                    check_same_grid(grid, path, *reference)
            except (VolumeError, GeometryError, ManifestError) as error:
                problems.append(f"case {case_id}: {error}")
    return problems


def check_same_grid(grid: Grid, path: Path | str, reference_path: Path | str, reference: Grid) -> None:
    """Compare a grid with a reference grid.

    Raises:
        GeometryError: the shapes differ, or a corner is more than half a voxel from its place.
    """
    if difference := grid.difference(reference, reference_path):
        raise GeometryError(f"{path}: {difference}")


def _read_and_check(manifest: Manifest, role: str, path: Path, read_images: bool) -> Grid:
    dims = manifest.spatial_dims
    if role == "label":
        label = read_label_map(path, spatial_dims=dims)
        _check_values(manifest, label)
        return label.grid
    if role == "instances":
        return read_label_map(path, spatial_dims=dims).grid
    if read_images:
        return read_volume(path, spatial_dims=dims).grid
    grid = read_grid(path)
    if grid.spatial_dims != dims:
        raise VolumeError(f"{path}: wrong number of dimensions; found shape {grid.shape}, expected {dims}D")
    return grid


def _check_values(manifest: Manifest, label: Volume) -> None:
    allowed = manifest.values_in_files
    unknown = sorted({int(value) for value in np.unique(label.array)} - set(allowed))
    if unknown:
        count = int(np.isin(label.array, unknown).sum())
        shown = ", ".join(map(str, unknown[:8])) + (", …" if len(unknown) > 8 else "")
        raise ManifestError(
            f"{label.name}: label values that are not in the manifest; found {shown} ({count} voxels), expected "
            f"{', '.join(map(str, allowed))}; correct the label map, add the values to labels, or set ignore_label"
        )
