"""One image in memory: its voxels, its grid, and the header that must survive a round trip to disk."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from medseg.errors import GeometryError
from medseg.volumes.grid import Grid, reorder

# NIfTI codes of length units other than mm, in the lowest three bits of xyzt_units.
OTHER_UNITS = {1: "meter", 3: "micron"}


@dataclass(frozen=True, eq=False)
class Volume:
    """A single-channel image or label map.

    Args:
        array: voxels in the axis order of the file (i, j[, k]), with the shape of `grid`.
        grid: shape and affine (RAS+ mm).
        path: the file or series folder it was read from; None for an image made in memory.
        format: "nifti", "analyze", "mgz", "nrrd", "mha", "png", "tiff", "jpeg", "zarr", "dicom" or "memory".
        header: a nibabel header for NIfTI, Analyze and MGH, otherwise a dictionary of the file's own metadata.
        file_grid: grid in the file, if a file of one slice was read as a 2D image; None if it is `grid`.

    Raises:
        GeometryError: the array does not have the shape of the grid.
    """

    array: np.ndarray
    grid: Grid
    path: Path | None = None
    format: str = "memory"
    header: Any = field(default=None, repr=False)
    file_grid: Grid | None = None

    def __post_init__(self) -> None:
        if tuple(self.array.shape) != self.grid.shape:
            raise GeometryError(
                f"{self.name}: array shape {self.array.shape} differs from grid shape {self.grid.shape}"
            )

    @property
    def name(self) -> str:
        """Name of the image for messages: its path, or "image in memory"."""
        return "image in memory" if self.path is None else str(self.path)

    @property
    def notes(self) -> list[str]:
        """Warnings about the file, one per line."""
        if self.format == "analyze" and self.path is not None and not self.path.with_suffix(".mat").exists():
            return [
                f"{self.name}: an Analyze header without a .mat file does not record which side is left; voxels are "
                "taken to be stored from right to left, as nibabel and SPM assume"
            ]
        if self.format == "nifti" and self.header is not None:
            unit = OTHER_UNITS.get(int(self.header["xyzt_units"]) & 7)
            if unit is not None:
                return [f"{self.name}: declares {unit} as its unit; the numbers of its affine are read as mm"]
        if self.format in ("dicom", "nrrd", "mha", "zarr"):
            return list((self.header or {}).get("notes", ()))
        return []

    def on_grid(self, reference: Grid, name: object = "the reference") -> Volume:
        """Return the same voxels in the axis order and directions of a grid that they share with another image.

        Args:
            reference: the grid; half a voxel is the tolerance (see `Grid.difference`).
            name: how to call the image with that grid in an error.

        Raises:
            GeometryError: the voxels lie elsewhere, even if axes are exchanged or reversed.
        """
        array, grid = reorder(self.array, self.grid, reference)
        if grid.difference(reference):
            raise GeometryError(f"{self.name}: {self.grid.difference(reference, name)}")
        return self if grid is self.grid else replace(self, array=array, grid=grid)
