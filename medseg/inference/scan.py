"""Read a scan from files or memory, check it against the plan, and turn it into a tensor."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medseg.errors import GeometryError, VolumeError
from medseg.plan import Plan
from medseg.transforms.normalization import contrast_offset
from medseg.volumes import Volume, as_channels, image_sha256, unchanged

if TYPE_CHECKING:
    from monai.data import MetaTensor

# A path, a sequence of paths (one per channel), an image of nibabel or SimpleITK, a medseg Volume, or (array, affine).
# nibabel and SimpleITK have no types that a checker could use.
ScanSource = str | os.PathLike[str] | Volume | Sequence[Any] | Any


@dataclass(frozen=True, eq=False)
class Scan:
    """Channels of one case.

    Args:
        channels: one volume per channel, all on one grid.
        input_sha256: digest of each file or folder; None for images in memory.
        notes: warnings about the scan, one line each.
    """

    channels: tuple[Volume, ...]
    input_sha256: tuple[str | None, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def reference(self) -> Volume:
        """Volume whose grid and header the segmentation gets."""
        return self.channels[0]

    @property
    def images(self) -> list[Volume]:
        """The channels, but only the first channel of each file."""
        paths = [volume.path for volume in self.channels]
        return [v for n, v in enumerate(self.channels) if v.path is None or v.path not in paths[:n]]

    @property
    def name(self) -> str:
        """Name of the case in messages."""
        return self.reference.name

    def to_tensor(self, dtype: np.typing.DTypeLike = np.float32) -> MetaTensor:
        """Return the image (C, *native grid), with the metadata that preprocessing and restoring need.

        A warning names a channel whose offset is so large that float32 loses its contrast. `model_image` removes it.

        Args:
            dtype: type of the tensor.

        Raises:
            VolumeError: a value exceeds the range of float32.
        """
        from monai.data import MetaTensor

        grid = self.reference.grid
        image = torch.from_numpy(np.empty((len(self.channels), *grid.shape), dtype))
        for c, volume in enumerate(self.channels):
            with np.errstate(over="ignore"):
                np.copyto(image[c].numpy(), volume.array, casting="unsafe")
            if image.dtype == torch.float32 and (
                offset := contrast_offset(volume.array, {"scheme": "percentile"}, volume.name)
            ):
                warnings.warn(
                    f"{volume.name}: float32 cannot hold its contrast above {offset:g}; subtract that from the image",
                    stacklevel=2,
                )
            if volume.array.dtype.itemsize > image.itemsize and not np.isfinite(image[c].aminmax()).all():
                raise VolumeError(f"{volume.name}: holds values beyond the range of float32; rescale them first")
        affine = torch.from_numpy(grid.affine.copy())
        meta = {
            "original_affine": affine.clone(),
            "spatial_shape": torch.tensor(grid.shape),
            "space": "RAS",
            "filename_or_obj": self.name,
        }
        return MetaTensor(image, affine=affine, meta=meta)


def load_scan(source: ScanSource, plan: Plan) -> Scan:
    """Read a scan and check it against the plan.

    Args:
        source: a path, a sequence of paths (one per channel), a nibabel or SimpleITK image, a medseg Volume, or a pair
            (array, affine) whose array is in (i, j, k) order, with channels first if the plan has several.
        plan: number of channels and axes of the model.

    Raises:
        VolumeError: the source cannot be read, has a wrong number of channels or axes, lies in another plane than the
            slices of a 2D plan, holds voxels that are not finite, or is changed while it is read.
        GeometryError: the channels lie on different grids.
    """
    parts = source if isinstance(source, Sequence) and not isinstance(source, str) else [source]
    with unchanged(Path(part) for part in parts if isinstance(part, str | os.PathLike)):
        volumes = as_channels(source, plan.spatial_dims, plan.in_channels)
        images = Scan(tuple(volumes)).images
        digests = tuple(None if volume.path is None else image_sha256(volume.path) for volume in images)
    if len(volumes) != plan.in_channels:
        names = ", ".join(c.get("name", "?") for c in plan.channels)
        raise VolumeError(
            f"{volumes[0].name if volumes else 'scan'}: {plan.name} takes {plan.in_channels} channel(s) ({names}), "
            f"found {len(volumes)}; give one file per channel in that order, or one file with all of them"
        )
    for volume in volumes:
        if volume.grid.spatial_dims != plan.spatial_dims:
            raise VolumeError(
                f"{volume.name}: {plan.name} takes {plan.spatial_dims}D images, found shape {volume.grid.shape}"
            )
    _check_plane(volumes[0], plan)
    volumes = on_one_grid(volumes)
    notes = [note for volume in images for note in volume.notes]
    return Scan(tuple(volumes), digests, (*notes, *_other_modalities(volumes, plan)))


def _check_plane(volume: Volume, plan: Plan) -> None:
    """Refuse a slice in another plane than that of the plan's axes."""
    found, expected = (
        {"LRPAIS".index(letter) // 2 for letter in code} for code in (volume.grid.orientation, plan.orientation)
    )
    if plan.spatial_dims == 2 and found != expected:
        raise VolumeError(
            f"{volume.name}: its axes point to {volume.grid.orientation}, where {plan.name} takes slices in the plane "
            f"{plan.orientation}; cut slices in that plane"
        )


def _other_modalities(volumes: Sequence[Volume], plan: Plan) -> Iterator[str]:
    """Yield a warning if a DICOM series is of another modality than the training data. Other formats do not say."""
    for volume, channel in zip(volumes, plan.channels, strict=True):
        found = volume.header.get("Modality", "") if volume.format == "dicom" else ""
        if found and found.upper() != str(channel["modality"]).upper():
            yield (
                f"{volume.name}: the modality is {found}, but {plan.name} was trained on {channel['modality']} "
                f"({channel['name']}); its labels are meaningless on other images"
            )


def on_one_grid(volumes: Sequence[Volume]) -> list[Volume]:
    """Return the channels of one case on the grid of the first; those in another axis order are reordered.

    Raises:
        GeometryError: they differ in shape, or in position by more than half a voxel.
    """
    reference = volumes[0]
    try:
        return [reference, *(volume.on_grid(reference.grid, reference.name) for volume in volumes[1:])]
    except GeometryError as error:
        raise GeometryError(f"{error}; the channels of a case must share one grid") from None
