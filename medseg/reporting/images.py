"""Finding the scan behind each evaluated case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg.datasets import Manifest
from medseg.errors import MedsegError
from medseg.evaluation.pairs import Source, label_maps
from medseg.volumes import Grid, read_volume

# nnU-Net's suffix of the first channel.
FIRST_CHANNEL = "_0000"


@dataclass(frozen=True)
class Images:
    """Case id → image file, and what kind of image it is.

    Args:
        files: the first channel of each case whose image is known.
        modality: of that channel where a manifest says so.
        note: what the page says about them; empty where nothing needs saying.
    """

    files: Mapping[str, Path]
    modality: str | None = None
    note: str = ""


def find_images(source: Source | None, references: Mapping[str, Path], manifest: Manifest | None) -> Images:
    """The image of each case.

    Args:
        source: a folder, files, or case id → file; a folder may be laid out as the manifest says, or hold files named
            by the case with or without nnU-Net's channel suffix. None looks where the manifest says images lie,
            relative to the reference label maps.
        references: case id → reference label map.
        manifest: of the data set, where there is one.

    Raises:
        EvaluationError: a source is given and nothing is there.
    """
    modality = manifest.channels[0].modality if manifest else None
    note = f"shows the first of {len(manifest.channels)} channels" if manifest and len(manifest.channels) > 1 else ""
    if manifest is not None and (source is None or isinstance(source, str | Path)):
        roots = [Path(source)] if isinstance(source, str | Path) else []
        pattern = manifest.files.image[0]
        roots += [] if source is not None else _roots(references, manifest)
        found = {case: root / pattern.format(case=case) for root in reversed(roots) for case in references}
        found = {case: path for case, path in found.items() if path.is_file()}
        if found:
            return Images(found, modality, note)
    if source is None:
        return Images({}, modality, "no images were given (`--images`): outlines are shown without the scan")
    named = label_maps(source, "image")
    files: dict[str, Path] = {}
    for case in references:
        for name in (case, case + FIRST_CHANNEL):
            if name in named:
                files.setdefault(case, named[name])
                if name != case and f"{case}_0001" in named:
                    note = "shows the first channel"
    return Images(files, modality, note)


def read_image(path: Path, grid: Grid) -> tuple[np.ndarray | None, str]:
    """The voxels of an image that lies on the label maps' grid; else None and one line that says why."""
    try:
        volume = read_volume(path, allow_non_finite=True)
    except MedsegError as error:
        return None, f"image left out: {error}"
    if volume.grid.shape != grid.shape:
        return None, f"image left out: its shape {volume.grid.shape} is not the label map's {grid.shape}"
    displacement_mm, limit_mm = volume.grid.corner_displacement_mm(grid), 0.5 * min(grid.spacing)
    if displacement_mm > limit_mm:
        return None, (
            f"image left out: its corners lie {displacement_mm:.3g} mm from the label map's, at most {limit_mm:.3g} mm "
            "(half a voxel)"
        )
    return np.nan_to_num(volume.array, copy=False) if volume.array.dtype.kind == "f" else volume.array, ""


def _roots(references: Mapping[str, Path], manifest: Manifest) -> list[Path]:
    """The data set's folders that the references' paths suggest: what is left of each without the label pattern."""
    roots: list[Path] = []
    for case, path in references.items():
        below = Path(manifest.files.label.format(case=case))
        absolute = path.absolute()
        if absolute.parts[-len(below.parts) :] == below.parts:
            root = absolute.parents[len(below.parts) - 1]
            if root not in roots:
                roots.append(root)
    return roots
