"""One image in memory: its voxels, its grid, and what must survive a round trip to disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medseg.errors import GeometryError
from medseg.volumes.grid import Grid

# NIfTI's codes of units of length other than mm, the lowest three bits of xyzt_units
NOT_MM = {1: "meter", 3: "micron"}


@dataclass(frozen=True, eq=False)
class Volume:
    """A single-channel image or label map.

    Args:
        array: voxels in the axis order of the file (i, j[, k]), the shape of ``grid``.
        grid: shape and affine (RAS+ mm).
        path: the file or series folder it came from; None for an image made in memory.
        format: "nifti", "nrrd", "mha", "png", "tiff", "dicom" or "memory".
        header: a nibabel header for NIfTI, otherwise a dictionary of the file's own metadata.
    """

    array: np.ndarray
    grid: Grid
    path: Path | None = None
    format: str = "memory"
    header: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if tuple(self.array.shape) != self.grid.shape:
            raise GeometryError(
                f"{self.name}: array shape {self.array.shape} differs from grid shape {self.grid.shape}"
            )

    @property
    def name(self) -> str:
        """What to call it in a message."""
        return "image in memory" if self.path is None else str(self.path)

    @property
    def notes(self) -> list[str]:
        """What the user should know about the file, a line each; usually nothing."""
        if self.format != "nifti" or self.header is None:
            return []
        unit = NOT_MM.get(int(self.header["xyzt_units"]) & 7)
        if unit is None:
            return []
        return [f"{self.name}: declares {unit} as its unit; the numbers of its affine are read as mm"]
