"""Check scans and segmentations against the fingerprint of the training data.

A network gives labels for any image. The fingerprint of a bundle (`models/fingerprint.json`) says how large fields of
view and structures were in the training cases, so that a result unlike all of them is called suspicious.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from medseg.errors import BundleError, ScanError
from medseg.volumes import Grid
from medseg.volumes.files import read_json

SCHEMA_VERSION = 1
FINGERPRINT = "models/fingerprint.json"  # in a bundle's folder
QUANTILES = {"smallest": 0.0, "0.5%": 0.005, "median": 0.5, "99.5%": 0.995, "largest": 1.0}
# A field of view larger than the largest of training by this factor, along any axis, is refused by networks that were
# trained on crops.
MAX_EXTENT_FACTOR = 1.5
# Below this size in mm along every axis, the images of a patient are crops.
CROP_MM = 100.0
PATIENT_MODALITIES = ("MR", "CT", "PT", "US")
# Volumes outside smallest / factor … largest · factor of training are implausible. Networks smooth extreme cases, so
# that a plausible volume rarely leaves the range of the references at all.
VOLUME_FACTOR = 1.25
# Of a structure, the fraction outside its largest piece, or on the border of the field of view, that is suspicious
# even if some training cases reach it.
MAX_STRAY, MAX_AT_BORDER = 0.1, 0.02


@dataclass(frozen=True)
class Measurement:
    """Size and shape of one label in one label map.

    Args:
        volume_ml: in millilitres.
        share: fraction of the voxels of the image.
        pieces: number of connected components (voxels that share a face, an edge or a corner).
        stray: fraction of the voxels outside the largest component.
        at_border: fraction of the voxels on the outermost layer of the field of view.
    """

    volume_ml: float
    share: float
    pieces: int
    stray: float
    at_border: float


@dataclass(frozen=True)
class LabelStatistics:
    """One label in all training cases.

    Args:
        volume_ml: quantiles of its volume where it is present, by name; empty for 2D images, which have no thickness.
        absent: number of cases without it.
        pieces: largest number of connected components.
        stray: largest fraction outside the largest component.
        at_border: largest fraction on the border of the field of view.
        share: for 2D images, quantiles of its fraction of the image where it is present.
    """

    volume_ml: Mapping[str, float]
    absent: int
    pieces: int
    stray: float
    at_border: float
    share: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Fingerprint:
    """Describe the training cases of a network by ranges that later scans are compared with.

    Args:
        cases: their number.
        extent_mm: quantiles of the field of view along right, anterior and superior, by name; empty for 2D images.
        spacing_mm: quantiles of the voxel size, likewise.
        labels: statistics of each label but the background.
        intensity: per channel, quantiles over the cases of the percentiles 0.5, 50 and 99.5 before normalisation;
            None for modalities without units.
        is_cropped: whether the training images were crops; larger scans are refused.
        for_whole_scans: name of a bundle for whole scans, to which a refusal refers.
    """

    cases: int
    extent_mm: Mapping[str, Sequence[float]]
    spacing_mm: Mapping[str, Sequence[float]]
    labels: Mapping[str, LabelStatistics]
    intensity: Sequence[Mapping[str, Sequence[float]]] | None = None
    is_cropped: bool = False
    for_whole_scans: str = ""
    schema_version: int = field(default=SCHEMA_VERSION)

    def to_dict(self) -> dict[str, Any]:
        """Return the fingerprint as plain data."""
        return json.loads(json.dumps(asdict(self)))

    def renamed(self, labels: Mapping[str, str]) -> Fingerprint:
        """Return the fingerprint of a plan that applies the network to regions, whose field of view is any.

        Args:
            labels: label of this fingerprint for each label of the other plan.
        """
        return Fingerprint(
            self.cases, {}, self.spacing_mm, {name: self.labels[known] for name, known in labels.items()}
        )


def read_fingerprint(path: str | Path) -> Fingerprint:
    """Read a fingerprint.json.

    Raises:
        BundleError: the file is not a fingerprint.
    """
    path = Path(path)
    try:
        values = read_json(path, BundleError)
        labels = {name: LabelStatistics(**statistics) for name, statistics in values.pop("labels").items()}
        fingerprint = Fingerprint(labels=labels, **values)
        if fingerprint.schema_version != SCHEMA_VERSION:
            raise ValueError(f"schema_version {fingerprint.schema_version}")
    except BundleError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BundleError(f"{path}: not a fingerprint of training data ({error}); compute it again") from None
    return fingerprint


def measure(array: np.ndarray, structures: Mapping[str, Sequence[int]], grid: Grid) -> dict[str, Measurement]:
    """Measure every structure of a label map.

    Args:
        array: integers on the grid.
        structures: label values above 0 by name.
        grid: of the array.
    """
    largest = max((max(values) for values in structures.values()), default=0)
    found = ndimage.find_objects(np.asarray(array).astype(np.intp), largest)
    measured: dict[str, Measurement] = {}
    neighbours = np.ones((3,) * array.ndim)
    for name, values in structures.items():
        boxes = [found[value - 1] for value in values if found[value - 1] is not None]
        if not boxes:
            measured[name] = Measurement(0.0, 0.0, 0, 0.0, 0.0)
            continue
        box = tuple(
            slice(min(part.start for part in parts), max(part.stop for part in parts))
            for parts in zip(*boxes, strict=True)
        )
        is_label = array[box] == values[0] if len(values) == 1 else np.isin(array[box], values)
        components, pieces = ndimage.label(is_label, neighbours)
        sizes = np.bincount(components.ravel())[1:]
        voxels = int(sizes.sum())
        inner = tuple(
            slice(max(1 - part.start, 0), min(size - 1 - part.start, part.stop - part.start))
            if size > 2
            else slice(None)
            for part, size in zip(box, array.shape, strict=True)
        )
        measured[name] = Measurement(
            voxels * grid.voxel_volume_mm3 / 1000,
            voxels / array.size,
            pieces,
            float(1 - sizes.max() / voxels),
            float(1 - np.count_nonzero(is_label[inner]) / voxels),
        )
    return measured


def statistics_of(measured: Sequence[Measurement], has_volume: bool = True) -> LabelStatistics:
    """Summarise the measurements of one label in all cases.

    Args:
        measured: one per case.
        has_volume: False for 2D images, of which the share of the image is summarised instead of the volume.
    """
    present = [each for each in measured if each.pieces]
    sizes = [each.volume_ml if has_volume else each.share for each in present] or [0.0]
    quantiles = {name: round(float(np.quantile(sizes, q)), 4) for name, q in QUANTILES.items()}
    return LabelStatistics(
        quantiles if has_volume else {},
        len(measured) - len(present),
        max((each.pieces for each in present), default=0),
        round(max((each.stray for each in present), default=0.0), 4),
        round(max((each.at_border for each in present), default=0.0), 4),
        {} if has_volume else quantiles,
    )


def extent_mm(grid: Grid) -> np.ndarray:
    """Return the size of a field of view along right, anterior and superior: that of the axis closest to each."""
    lengths = np.array(grid.spacing) * grid.shape
    directions = np.abs(grid.affine[:3, : grid.spatial_dims]) / np.array(grid.spacing)
    return np.array([lengths[int(np.argmax(row))] if row.any() else 0.0 for row in directions])


def field_of_view_problem(grid: Grid, fingerprint: Fingerprint) -> str:
    """Return one line if a scan's field of view is too large for a network that was trained on crops, else ""."""
    if not fingerprint.is_cropped or not fingerprint.extent_mm:
        return ""
    extent, largest = np.sort(extent_mm(grid)), np.sort(fingerprint.extent_mm["largest"])
    if np.all(extent <= MAX_EXTENT_FACTOR * largest):
        return ""
    found, known = (
        "×".join(f"{size:.0f}" for size in sizes) for sizes in (extent_mm(grid), fingerprint.extent_mm["largest"])
    )
    return f"the scan is {found} mm, the network was trained on crops up to {known} mm"


def check_field_of_view(name: str, grid: Grid, fingerprint: Fingerprint) -> None:
    """Refuse a whole scan for a network that was trained on crops.

    Args:
        name: the scan's file.
        grid: of the scan.
        fingerprint: of the network.

    Raises:
        ScanError: the field of view is more than 1.5 times the largest of training.
    """
    problem = field_of_view_problem(grid, fingerprint)
    if problem:
        other = f"use {fingerprint.for_whole_scans} for whole scans, " if fingerprint.for_whole_scans else ""
        raise ScanError(f"{name}: {problem}; {other or 'crop the scan, '}or predict all the same with --force")


def suspicions(measured: Mapping[str, Measurement], fingerprint: Fingerprint) -> list[str]:
    """Return why a segmentation is unlike those of training, one line per reason; none for a plausible one.

    Args:
        measured: of the segmentation, by label.
        fingerprint: of the network's training data.
    """
    return [
        f"{name}: {reason}"
        for name, known in fingerprint.labels.items()
        if name in measured
        for reason in _reasons(measured[name], known, fingerprint.cases)
    ]


def _reasons(found: Measurement, known: LabelStatistics, cases: int) -> Iterable[str]:
    if found.pieces == 0:
        if known.absent == 0:
            yield f"absent, but present in all {cases} training cases"
        return
    if known.volume_ml:
        smallest, largest = known.volume_ml["smallest"], known.volume_ml["largest"]
        if not smallest / VOLUME_FACTOR <= found.volume_ml <= largest * VOLUME_FACTOR:
            yield f"{found.volume_ml:.2f} ml, but {smallest:.2f} to {largest:.2f} ml in training"
    if known.share:
        smallest, largest = known.share["smallest"], known.share["largest"]
        # Of a structure that fills most of the image, the rest must be as plausible.
        least, most = (max(smallest / VOLUME_FACTOR, 1 - (1 - smallest) * VOLUME_FACTOR),
                       min(largest * VOLUME_FACTOR, 1 - (1 - largest) / VOLUME_FACTOR))  # fmt: skip
        if not least <= found.share <= most:
            yield f"{found.share:.0%} of the image, but {smallest:.0%} to {largest:.0%} in training"
    if found.stray > max(MAX_STRAY, 1.5 * known.stray):
        yield (
            f"in {found.pieces} pieces, {found.stray:.0%} outside the largest, but at most {known.pieces} pieces with "
            f"{known.stray:.0%} in training"
        )
    if found.at_border > max(MAX_AT_BORDER, 1.5 * known.at_border):
        yield (
            f"{found.at_border:.0%} of it on the border of the field of view, but at most {known.at_border:.0%} in "
            "training"
        )
