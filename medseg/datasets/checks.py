"""Whether the files of a case fit together and fit the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from medseg.datasets.manifest import Manifest
from medseg.errors import GeometryError, ManifestError, VolumeError
from medseg.volumes import Grid, Volume, read_grid, read_label_map, read_volume


def check_case(manifest: Manifest, root: Path | str, case_id: str, read_images: bool = True) -> None:
    """Raise one line if a case's files cannot be used together.

    Args:
        manifest: the data set.
        root: its folder.
        case_id: the case.
        read_images: read every voxel of the images; otherwise their headers alone (the label map is always read).

    Raises:
        ManifestError: a file is absent, damaged or not finite; a grid differs from the first channel's in shape or by
            more than half a voxel; a label value is not in the manifest. The line names the case and the file.
    """
    problems = case_problems(manifest, manifest.paths(root, case_id), case_id, read_images)
    if problems:
        raise ManifestError(problems[0])


def case_problems(
    manifest: Manifest, files: Mapping[str, list[Path]], case_id: str, read_images: bool = True
) -> list[str]:
    """Every problem of a case, one line each; an empty list if there is none.

    Args:
        manifest: the data set.
        files: paths by role as ``Manifest.paths`` gives them; they may lie elsewhere.
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
    """Raise GeometryError if a grid has another shape than the reference or is displaced by more than half a voxel."""
    if difference := grid.difference(reference, reference_path):
        raise GeometryError(f"{path}: {difference}")


def _read_and_check(manifest: Manifest, role: str, path: Path, read_images: bool) -> Grid:
    if role == "label":
        label = read_label_map(path, spatial_dims=manifest.spatial_dims)
        _check_values(manifest, label)
        return label.grid
    if role == "instances":
        return read_label_map(path, spatial_dims=manifest.spatial_dims).grid
    if read_images:
        return read_volume(path, spatial_dims=manifest.spatial_dims).grid
    grid = read_grid(path)
    if grid.spatial_dims != manifest.spatial_dims:
        raise VolumeError(f"{path}: has shape {grid.shape} where {manifest.spatial_dims}D is expected")
    return grid


def _check_values(manifest: Manifest, label: Volume) -> None:
    allowed = manifest.values_in_files
    strangers = sorted({int(value) for value in np.unique(label.array)} - set(allowed))
    if strangers:
        count = int(np.isin(label.array, strangers).sum())
        shown = ", ".join(map(str, strangers[:8])) + (", …" if len(strangers) > 8 else "")
        raise ManifestError(
            f"{label.name}: label values {shown} ({count} voxels) are outside the manifest's "
            f"{', '.join(map(str, allowed))}; correct the label map, add them to labels, or name ignore_label"
        )
