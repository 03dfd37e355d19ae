"""Find and read the scan of each evaluated case, with all of its channels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medseg.datasets import Manifest
from medseg.errors import MedsegError
from medseg.evaluation.pairs import Source, find_label_maps
from medseg.volumes import Grid, read_channels, read_volume, reorder

# Suffix of a channel in nnU-Net's file names.
CHANNEL_SUFFIX = "_{:04d}"


@dataclass(frozen=True)
class Images:
    """Files of the scans and modality of each channel.

    Args:
        files: case id → channel name → file; cases without an image are absent. Channels in one file have the same.
        channels: names of the channels that every case should have; empty without a manifest.
        modalities: channel name → modality, from a manifest.
        note: remark for the page; may be empty.
    """

    files: Mapping[str, Mapping[str, Path]]
    channels: tuple[str, ...] = ()
    modalities: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    def read(self, case: str, grid: Grid, problems: list[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Yield name and voxels of each channel on the label maps' grid, one at a time.

        Args:
            case: case id.
            grid: grid of the label maps.
            problems: list to which one line per omitted channel is appended.
        """
        found = self.files.get(case, {})
        if not found and self.files:
            problems.append("no image found for this case")
        is_one_file = len(found) > 1 and len(set(found.values())) == 1
        for number, (name, path) in enumerate(found.items()):
            image, problem = read_image(path, grid, number if is_one_file else None)
            if image is None:
                problems.append(f"{name}: {problem}" if len(found) > 1 else problem)
            else:
                yield name, image
        missing = [name for name in self.channels if name not in found]
        if found and missing:
            problems.append(f"no file of channel {', '.join(missing)}")


def find_images(source: Source | None, references: Mapping[str, Path], manifest: Manifest | None) -> Images:
    """Find the image of each case.

    Args:
        source: a folder, files, or case id → file. A folder may be laid out as the manifest says, or hold files named
            by the case with or without nnU-Net's channel suffix. None looks where the manifest says images lie,
            relative to the reference label maps.
        references: case id → reference label map.
        manifest: manifest of the data set, if there is one.

    Raises:
        EvaluationError: the source does not exist or holds no images.
    """
    names = manifest.channel_names if manifest else ()
    modalities = dict(zip(names, (channel.modality for channel in manifest.channels), strict=True)) if manifest else {}
    if manifest is not None and (source is None or isinstance(source, str | Path)):
        roots = [Path(source)] if isinstance(source, str | Path) else _roots(references, manifest)
        files = {case: _of_manifest(case, roots, names, manifest) for case in references}
        files = {case: of for case, of in files.items() if of}
        if files:
            return Images(files, names, modalities)
    if source is None:
        return Images({}, note="no images were given (`--images`): outlines are shown without the scan")
    named = find_label_maps(source, "image")
    in_one_file = manifest is not None and manifest.has_channels_in_one_file
    files = {case: _of_names(case, named, names, in_one_file) for case in references}
    return Images({case: of for case, of in files.items() if of}, names, modalities)


def read_image(path: Path, grid: Grid, channel: int | None = None) -> tuple[np.ndarray | None, str]:
    """Read an image on the label maps' grid; an image in another axis order or direction is reordered.

    Args:
        path: the file.
        grid: the label maps' grid.
        channel: number of the channel in a file with several; None for a file with one.

    Returns:
        The voxels and an empty string, or None and why the image is left out.
    """
    try:
        if channel is None:
            volume = read_volume(path, allow_non_finite=True)
        else:
            channels = read_channels(path, allow_non_finite=True)
            if channel >= len(channels):
                return None, f"image left out: {path.name} holds {len(channels)} channels"
            volume = channels[channel]
    except MedsegError as error:
        return None, f"image left out: {error}"
    image, image_grid = reorder(volume.array, volume.grid, grid)
    if difference := image_grid.difference(grid, "the label map"):
        return None, f"image left out: {difference}"
    return np.nan_to_num(image, copy=False) if image.dtype.kind == "f" else image, ""


def _of_manifest(case: str, roots: Sequence[Path], names: Sequence[str], manifest: Manifest) -> dict[str, Path]:
    """Return the channels of a case in the first folder that holds its first channel."""
    for root in roots if case in manifest.case_ids else ():
        paths = manifest.paths(root, case)["image"]
        if paths[0].is_file() and len(paths) < len(names):
            return dict.fromkeys(names, paths[0])
        if paths[0].is_file():
            return {name: path for name, path in zip(names, paths, strict=True) if path.is_file()}
    return {}


def _of_names(case: str, named: Mapping[str, Path], names: Sequence[str], in_one_file: bool) -> dict[str, Path]:
    """Return the channels of a case among files named by it without a suffix or with nnU-Net's `_0000`, `_0001`, …"""
    if in_one_file and (path := named.get(case, named.get(case + CHANNEL_SUFFIX.format(0)))):
        return dict.fromkeys(names, path)
    if case in named:
        return {names[0] if names else "": named[case]}
    found: list[Path] = []
    while case + CHANNEL_SUFFIX.format(len(found)) in named:
        found.append(named[case + CHANNEL_SUFFIX.format(len(found))])
    if len(names) == len(found):
        return dict(zip(names, found, strict=True))
    return {f"channel {number}" if len(found) > 1 else "": path for number, path in enumerate(found, start=1)}


def _roots(references: Mapping[str, Path], manifest: Manifest) -> list[Path]:
    """Return the data set's folders: the references' paths without the part that the manifest's label pattern gives."""
    roots: list[Path] = []
    for case, path in references.items():
        if case not in manifest.case_ids:
            continue
        below = manifest.paths(".", case)["label"][0]
        absolute = path.absolute()
        if absolute.parts[-len(below.parts) :] == below.parts:
            root = absolute.parents[len(below.parts) - 1]
            if root not in roots:
                roots.append(root)
    return roots
