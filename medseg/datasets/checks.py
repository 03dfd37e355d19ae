"""Read the files of a case on one grid, and check that they agree with each other and with the manifest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from medseg.datasets.manifest import Manifest
from medseg.errors import GeometryError, ManifestError, VolumeError
from medseg.volumes import Volume, read_channels, read_colored_label_map, read_label_map, read_volume


def check_case(manifest: Manifest, root: Path | str, case_id: str) -> None:
    """Raise an error if the files of a case cannot be used together.

    Args:
        manifest: the dataset.
        root: its folder.
        case_id: the case.

    Raises:
        ManifestError: a file is missing, damaged or not finite; its voxels are not those of the first channel, in shape
            or by more than half a voxel; or a label value is not in the manifest. The message names the case and the
            file.
    """
    problems = case_problems(manifest, manifest.paths(root, case_id), case_id)
    if problems:
        raise ManifestError(problems[0])


def case_problems(manifest: Manifest, files: Mapping[str, list[Path]], case_id: str) -> list[str]:
    """Return one line per problem of a case; an empty list if there is none.

    Args:
        manifest: the dataset.
        files: paths by role as ``Manifest.paths`` returns them. They may be in another folder.
        case_id: the case, for the messages.
    """
    problems: list[str] = []
    for _ in _volumes(manifest, files, case_id, problems):
        pass  # one volume at a time is in memory
    return problems


def read_case(manifest: Manifest, files: Mapping[str, list[Path]], case_id: str) -> dict[str, list[Volume]]:
    """Read the files of a case on the grid of its first file.

    A file that stores the same voxels in another axis order or direction is reordered, without loss.

    Args:
        manifest: the dataset.
        files: paths by role as ``Manifest.paths`` returns them.
        case_id: the case, for the messages.

    Returns:
        The volumes by role. Label maps and instance maps hold integers, with the values of the file.

    Raises:
        ManifestError: as ``check_case``.
    """
    problems: list[str] = []
    volumes: dict[str, list[Volume]] = {role: [] for role in files}
    for role, volume in _volumes(manifest, files, case_id, problems):
        volumes[role].append(volume)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ManifestError(problems[0] + more)
    return volumes


def replace_values(array: np.ndarray, table: Mapping[int, int], dtype: np.typing.DTypeLike) -> np.ndarray:
    """Replace every value of a label map.

    Args:
        array: integers, any shape.
        table: the new value of each value, which may be any integers of 64 bits.
        dtype: type of the result.

    Raises:
        ValueError: the array holds a value that the table lacks.
    """
    stored = np.array(sorted(table), dtype=np.int64)
    wanted = np.array([table[value] for value in stored.tolist()], dtype)
    result = np.empty(array.shape, dtype)
    for plane, target in zip(np.moveaxis(array, -1, 0), np.moveaxis(result, -1, 0), strict=True):
        position = np.minimum(np.searchsorted(stored, plane), len(stored) - 1)
        if (unknown := plane[stored[position] != plane]).size:
            raise ValueError(f"value {unknown[0]} is not one of {stored.tolist()}")
        target[...] = wanted[position]
    return result


def _volumes(
    manifest: Manifest, files: Mapping[str, list[Path]], case_id: str, problems: list[str]
) -> Iterator[tuple[str, Volume]]:
    """Yield the role and the volume of each usable file, on the grid of the first; append a line for each other one."""
    first: Volume | None = None
    for role, path in ((role, path) for role, paths in files.items() for path in paths):
        try:
            volumes = _read(manifest, role, path)
            first = first or volumes[0]
            volumes = [volume.on_grid(first.grid, first.name) for volume in volumes]
        except (VolumeError, GeometryError, ManifestError) as error:
            problems.append(f"case {case_id}: {error}")
        else:
            yield from ((role, volume) for volume in volumes)


def _read(manifest: Manifest, role: str, path: Path) -> list[Volume]:
    if role == "image":
        if not manifest.has_channels_in_one_file:
            return [read_volume(path, spatial_dims=manifest.spatial_dims)]
        channels = read_channels(path, spatial_dims=manifest.spatial_dims)
        if len(channels) != len(manifest.channels):
            names = ", ".join(manifest.channel_names)
            raise ManifestError(
                f"{path}: holds {len(channels)} channels where {len(manifest.channels)} ({names}) are expected; "
                "correct channels in the manifest or the file"
            )
        return channels
    if role == "label" and manifest.has_colored_labels:
        label_map = read_colored_label_map(path, spatial_dims=manifest.spatial_dims)
    else:
        label_map = read_label_map(path, spatial_dims=manifest.spatial_dims)
    if role == "label":
        _check_values(manifest, label_map)
    return [label_map]


def _check_values(manifest: Manifest, label: Volume) -> None:
    allowed = manifest.values_in_files
    unknown = sorted({int(value) for value in np.unique(label.array)} - set(allowed))
    if unknown:
        count = int(np.isin(label.array, unknown).sum())
        name = "#{:06x}".format if manifest.has_colored_labels else str
        shown = ", ".join(map(name, unknown[:8])) + (", …" if len(unknown) > 8 else "")
        raise ManifestError(
            f"{label.name}: label values that are not in the manifest; found {shown} ({count} voxels), expected "
            f"{', '.join(map(name, allowed))}; correct the label map, add the values to labels, or set ignore_label"
        )
