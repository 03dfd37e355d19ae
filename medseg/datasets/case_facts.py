"""Facts about the files of a case: grids, intensities, label values. Checks and plans are computed from them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from medseg.volumes import (
    Grid,
    reorder,
)

PERCENTILES = (0.5, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0, 99.5)
# Edge of the thumbnail that images are compared by.
THUMBNAIL_EDGE = 8


@dataclass(frozen=True)
class Intensities:
    """Distribution of the finite voxels of an image, or of its labelled part.

    Args:
        count: number of voxels.
        minimum, maximum, mean, std: of all of them.
        percentiles: the `PERCENTILES`, from at most about a million evenly spaced voxels.
    """

    count: int
    minimum: float
    maximum: float
    mean: float
    std: float
    percentiles: tuple[float, ...]

    def percentile(self, percent: float) -> float:
        """Return one of the `PERCENTILES`."""
        return self.percentiles[PERCENTILES.index(percent)]


@dataclass(frozen=True)
class ValueFacts:
    """Voxels of one value in a label map.

    Args:
        voxels: their number.
        pieces: number of connected pieces (neighbours share a face, an edge or a corner).
        smallest: number of voxels of the smallest piece.
        largest: number of voxels of the largest piece.
        at: one voxel of the smallest piece.
    """

    voxels: int
    pieces: int
    smallest: int
    largest: int
    at: tuple[int, ...]


@dataclass(frozen=True)
class FileFacts:
    """Facts about one image or label map; all fields behind `problem` have their defaults if it could not be read.

    Args:
        role: "image", "label" or "instances".
        channel: number of the image channel; 0 for label maps.
        path: the file, relative to the data set's folder if it lies below it.
        problem: why it could not be read, in one line; empty if it could.
        is_missing: True if there is no file.
        stored_shape: all sizes in the header, also of a file that could not be read; empty if unknown.
        shape: sizes in voxels.
        affine: 4×4, voxel index to mm (RAS+).
        dtype: type of the stored numbers.
        format: as in `Volume`.
        header: texts and codes of the header; identifiers of DICOM are hashed.
        digest: SHA-256 of the values in patient orientation, whatever their type, storage order and compression.
        non_finite: number of voxels that are NaN or infinite.
        non_finite_at: one of them.
        intensities: of the finite voxels of an image.
        foreground: of the labelled voxels of an image; None without a label map on its grid or without labels.
        thumbnail: block means along 8 parts per axis with mean 0 and standard deviation 1, as base64 of float16; empty
            for a label map, a constant image or one with voxels that are not finite.
        fractional: number of voxels of a label map that are not whole numbers.
        fraction: one of these values.
        values: what is known about each value of a label map but 0, by value.
        zeros: number of voxels of a label map that are 0.
    """

    role: str
    channel: int
    path: str
    problem: str = ""
    is_missing: bool = False
    stored_shape: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()
    affine: tuple[tuple[float, ...], ...] = ()
    dtype: str = ""
    format: str = ""
    header: Mapping[str, str] = field(default_factory=dict)
    digest: str = ""
    non_finite: int = 0
    non_finite_at: tuple[int, ...] = ()
    intensities: Intensities | None = None
    foreground: Intensities | None = None
    thumbnail: str = ""
    fractional: int = 0
    fraction: float = 0.0
    values: Mapping[int, ValueFacts] = field(default_factory=dict)
    zeros: int = 0

    @property
    def grid(self) -> Grid:
        """The grid of a file that could be read."""
        return Grid(self.shape, np.array(self.affine))

    @property
    def is_readable(self) -> bool:
        """True if the file could be read."""
        return not self.problem

    def thumbnail_vector(self) -> np.ndarray | None:
        """Return the thumbnail as float32, shape (8, 8[, 8]), or None if there is none."""
        if not self.thumbnail:
            return None
        values = np.frombuffer(base64.b64decode(self.thumbnail), dtype="<f2").astype(np.float32)
        return values.reshape((THUMBNAIL_EDGE,) * len(self.shape))


@dataclass(frozen=True)
class CaseFacts:
    """Facts about the files of one case, in the order of the manifest's channels, then the label map.

    Args:
        case: the case id.
        files: the facts.
    """

    case: str
    files: tuple[FileFacts, ...]

    @property
    def images(self) -> tuple[FileFacts, ...]:
        """The image files, one per channel."""
        return tuple(file for file in self.files if file.role == "image")

    @property
    def label(self) -> FileFacts | None:
        """The label map, or None if the case has none."""
        return next((file for file in self.files if file.role == "label"), None)

    def to_json(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> CaseFacts:
        """Restore the record from `to_json`.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: the content is something else.
        """
        return cls(content["case"], tuple(_file_from_json(item) for item in content["files"]))


def same_voxels_on(facts: FileFacts, reference: FileFacts) -> Grid | None:
    """Return the grid of a file in the axis order of another that holds the same voxels, or None if they lie elsewhere.

    Args:
        facts: the file, such as a label map.
        reference: the file to compare with, such as its image. Half its smallest spacing is the tolerance.
    """
    grid, target = facts.grid, reference.grid
    if grid.spatial_dims != target.spatial_dims:
        return None
    if grid.spatial_dims == 3 and grid.difference(target):
        _, grid = reorder(np.broadcast_to(np.zeros((), np.uint8), grid.shape), grid, target)
    return None if grid.difference(target) else grid


def _file_from_json(item: Mapping[str, Any]) -> FileFacts:
    fields = dict(item)
    for name in ("stored_shape", "shape", "non_finite_at"):
        fields[name] = tuple(fields[name])
    fields["affine"] = tuple(tuple(row) for row in fields["affine"])
    for name in ("intensities", "foreground"):
        if fields[name] is not None:
            fields[name] = Intensities(**fields[name] | {"percentiles": tuple(fields[name]["percentiles"])})
    fields["values"] = {
        int(value): ValueFacts(**facts | {"at": tuple(facts["at"])}) for value, facts in fields["values"].items()
    }
    return FileFacts(**fields)
