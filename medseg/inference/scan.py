"""What a user may hand in as a scan, and how it becomes a tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

from medseg.errors import GeometryError, VolumeError
from medseg.plan import Plan
from medseg.volumes import Volume, as_channels, files_of
from medseg.volumes.files import file_sha256


def input_digest(path: Path) -> str:
    """SHA-256 of a file's content; of a folder (a DICOM series), of the names and contents of its files in order.

    A header that names a file with its voxels (.mhd, .nhdr, .hdr) is taken together with it.

    Raises:
        OSError: something cannot be read.
    """
    parts = files_of(path)
    if parts == [path]:
        return file_sha256(path)
    lines = "".join(f"{file_sha256(part)}  {part.name}\n" for part in parts)
    return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def input_digests(paths: Sequence[Path]) -> list[str]:
    """The digest of each input."""
    return [input_digest(path) for path in paths]


@dataclass(frozen=True, eq=False)
class Scan:
    """The channels of one case.

    Args:
        channels: one volume a channel, all on one grid.
        input_sha256: digest of the file or folder of each channel; None where it was in memory.
        notes: what the user should know about it.
    """

    channels: tuple[Volume, ...]
    input_sha256: tuple[str | None, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def reference(self) -> Volume:
        """The volume whose grid and header the segmentation gets."""
        return self.channels[0]

    @property
    def name(self) -> str:
        """What to call the case in a message."""
        return self.reference.name

    def to_tensor(self) -> MetaTensor:
        """(C, *native grid) float32 with the metadata that preprocessing and restoring need.

        Raises:
            VolumeError: a value is beyond float32.
        """
        grid = self.reference.grid
        image = torch.empty((len(self.channels), *grid.shape), dtype=torch.float32)
        for c, volume in enumerate(self.channels):
            with np.errstate(over="ignore"):
                np.copyto(image[c].numpy(), volume.array, casting="unsafe")
            if volume.array.dtype.itemsize > image.itemsize and not np.isfinite(image[c].aminmax()).all():
                raise VolumeError(f"{volume.name}: holds values beyond float32; rescale them first")
        affine = torch.from_numpy(grid.affine.copy())
        meta = {
            "original_affine": affine.clone(),
            "spatial_shape": torch.tensor(grid.shape),
            "space": "RAS",
            "filename_or_obj": self.name,
        }
        return MetaTensor(image, affine=affine, meta=meta)


def load_scan(source: Any, plan: Plan) -> Scan:
    """Read a scan and check it against the plan.

    Args:
        source: a path, a sequence of paths (one a channel), a nibabel or SimpleITK image, a medseg Volume, or a pair
            (array, affine) with the array in (i, j, k) order, channels first where the plan has several.
        plan: how many channels and axes the model takes.

    Raises:
        VolumeError: the source cannot be read, has another number of channels or axes, or voxels that are not finite.
        GeometryError: the channels lie on different grids.
    """
    volumes = as_channels(source, plan.spatial_dims)
    if len(volumes) != plan.in_channels:
        names = ", ".join(c.get("name", "?") for c in plan.channels)
        raise VolumeError(
            f"{volumes[0].name if volumes else 'scan'}: {plan.name} takes {plan.in_channels} channel(s) ({names}), "
            f"found {len(volumes)}; give one file a channel in that order"
        )
    for volume in volumes:
        if volume.grid.spatial_dims != plan.spatial_dims:
            raise VolumeError(
                f"{volume.name}: {plan.name} takes {plan.spatial_dims}D images, found shape {volume.grid.shape}"
            )
    check_one_grid(volumes)
    digests = tuple(None if volume.path is None else input_digest(volume.path) for volume in volumes)
    notes = [note for volume in volumes for note in volume.notes]
    return Scan(tuple(volumes), digests, (*notes, *_other_modalities(volumes, plan)))


def _other_modalities(volumes: Sequence[Volume], plan: Plan) -> Iterator[str]:
    """A line where a DICOM series tells another modality than the model was trained on; other formats do not tell."""
    for volume, channel in zip(volumes, plan.channels, strict=True):
        found = volume.header.get("Modality", "") if volume.format == "dicom" else ""
        if found and found.upper() != str(channel["modality"]).upper():
            yield (
                f"{volume.name}: the series says its modality is {found}, {plan.name} was trained on "
                f"{channel['modality']} ({channel['name']}); its labels mean nothing on other images"
            )


def check_one_grid(volumes: Sequence[Volume]) -> None:
    """Raise GeometryError unless the channels of one case have one shape and lie at one place, up to half a voxel."""
    reference = volumes[0]
    for other in volumes[1:]:
        if difference := other.grid.difference(reference.grid, reference.name):
            raise GeometryError(f"{other.name}: channels of one case need one grid: {difference}")
