"""Measure a data set: sizes, voxel sizes, intensities and labels of its cases, one case at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy import ndimage

from medseg.datasets import Manifest, read_case, replace_values, split_by_presence
from medseg.errors import ManifestError
from medseg.volumes import Grid, Volume

PERCENTILES = (0.5, 50.0, 99.5)
# Labelled voxels whose intensities are kept, over all cases.
MOST_SAMPLES = 10_000_000
# Cases and voxels per axis in which instances are looked for.
INSTANCE_CASES, INSTANCE_EDGE = 4, {2: 512, 3: 96}
# Background this near to two instances, as the sum of both distances in voxels, lies between them.
GAP_VOXELS = 10
AIR_LEVELS = (-500.0, -900.0)


@dataclass(frozen=True)
class IntensityStatistics:
    """Intensities of the labelled voxels of all cases, in one channel.

    Args:
        mean, std, minimum, median, maximum: of the sample.
        lower, upper: percentiles 0.5 and 99.5.
    """

    mean: float
    std: float
    minimum: float
    lower: float
    median: float
    upper: float
    maximum: float


@dataclass(frozen=True)
class LabelFacts:
    """One label in the whole data set.

    Args:
        value: in the label maps of the plan.
        cases: number of cases that contain it.
        fraction: of all voxels.
        pieces: median number of connected components in the cases that were searched for instances.
        crowding: largest fraction of the background that lies between two of its pieces.
    """

    value: int
    cases: int
    fraction: float
    pieces: float = 0.0
    crowding: float = 0.0


@dataclass(frozen=True)
class DataFingerprint:
    """All that the planning rules need to know of a data set. Axes are ordered as right, anterior, superior.

    Args:
        name: of the data set.
        spatial_dims: 2 or 3.
        channels: `(name, modality)` per channel.
        labels: facts of each label by name, background included.
        shapes: size of each case in voxels.
        nonzero_shapes: the same of the smallest box around its voxels that are not 0.
        spacings: voxel size of each case in mm.
        intensities: per channel; None if no voxel is labelled.
        has_physical_spacing: False for pictures such as PNG, whose pixels have no size.
        has_instance_maps: True if the manifest names a map with one number per object.
        instances_touch: True if two objects of an instance map are neighbours.
        air_below: largest of -500 and -900 HU below which no labelled voxel lies and a part of each scan does; None
            if there is none, or for other modalities.
        largest_values: largest intensity per channel.
        seconds_per_case: median time in which a case was read and measured.
        regions: member labels of each region by name, for a data set with overlapping regions.
        regions_class_order: label value with which each region is drawn.
    """

    name: str
    spatial_dims: int
    channels: Sequence[tuple[str, str]]
    labels: Mapping[str, LabelFacts]
    shapes: Sequence[tuple[int, ...]]
    nonzero_shapes: Sequence[tuple[int, ...]]
    spacings: Sequence[tuple[float, ...]]
    intensities: Sequence[IntensityStatistics] | None
    has_physical_spacing: bool = True
    has_instance_maps: bool = False
    instances_touch: bool = False
    air_below: float | None = None
    largest_values: Sequence[float] = ()
    seconds_per_case: float = 0.0
    regions: Mapping[str, Sequence[int]] = field(default_factory=dict)
    regions_class_order: Sequence[int] = ()

    @property
    def num_cases(self) -> int:
        """Number of cases."""
        return len(self.shapes)

    @property
    def nonzero_fraction(self) -> float:
        """Median over the cases of the volume of the box around non-zero voxels, relative to the whole image."""
        ratios = [np.prod(n) / np.prod(s) for n, s in zip(self.nonzero_shapes, self.shapes, strict=True)]
        return float(np.median(ratios))


def measure_dataset(
    manifest: Manifest,
    root: Path | str,
    case_ids: Sequence[str] | None = None,
    on_case: Callable[[str, int, int], None] | None = None,
) -> DataFingerprint:
    """Read every case once and measure it. One case at a time is in memory.

    Args:
        manifest: the data set.
        root: its folder.
        case_ids: cases to measure; None for all that are present, except those of the test fold.
        on_case: called before each case with its id, its number from 0, and the number of cases.

    Raises:
        ManifestError: no case is there, a case cannot be used, or no case has a labelled voxel.
    """
    test = manifest.folds.get(manifest.test_fold, ()) if manifest.test_fold is not None else ()
    wanted = [case for case in manifest.case_ids if case not in test] if case_ids is None else list(case_ids)
    present, absent = split_by_presence(manifest, root, wanted)
    if not present:
        first = next(path for paths in manifest.paths(root, absent[0]).values() for path in paths)
        raise ManifestError(f"{manifest.name}: no case is complete under {root}; there is no {first}")
    collected = _Collected(manifest, max(1, MOST_SAMPLES // len(present)))
    for number, case_id in enumerate(present):
        if on_case is not None:
            on_case(case_id, number, len(present))
        start = time.perf_counter()
        collected.add(read_case(manifest, manifest.paths(root, case_id), case_id))
        collected.seconds.append(time.perf_counter() - start)
    return collected.result()


class _Collected:
    """Measurements of the cases that were read so far."""

    def __init__(self, manifest: Manifest, samples_per_case: int) -> None:
        self.manifest = manifest
        self.samples_per_case = samples_per_case
        self.values = sorted(manifest.labels.values())
        self.shapes: list[tuple[int, ...]] = []
        self.nonzero: list[tuple[int, ...]] = []
        self.spacings: list[tuple[float, ...]] = []
        self.counts: list[np.ndarray] = []
        self.samples: list[list[np.ndarray]] = [[] for _ in manifest.channels]
        self.largest = [-np.inf for _ in manifest.channels]
        self.pieces: dict[int, list[tuple[int, float]]] = {}
        self.formats: set[str] = set()
        self.touch = False
        self.has_instances = False
        self.air: dict[float, list[tuple[float, int]]] = {level: [] for level in AIR_LEVELS}
        self.seconds: list[float] = []

    def add(self, volumes: Mapping[str, Sequence[Volume]]) -> None:
        """Measure one case."""
        images, label = volumes["image"], volumes["label"][0]
        numbered = self._numbered(label.array)
        self.formats.add(images[0].format)
        shape, spacing, order = in_patient_order(images[0].grid)
        self.shapes.append(shape)
        self.spacings.append(spacing)
        is_filled = np.zeros(images[0].array.shape, bool)
        for volume in images:
            is_filled |= volume.array != 0
        box = ndimage.find_objects(is_filled.view(np.uint8))
        sizes = [part.stop - part.start for part in box[0]] if box and box[0] is not None else list(is_filled.shape)
        self.nonzero.append(tuple(sizes[axis] for axis in order))
        self.counts.append(np.bincount(numbered.ravel(), minlength=len(self.values) + 1))
        foreground = (numbered > 0) & (numbered < len(self.values))
        for channel, volume in enumerate(images):
            self._sample(channel, volume.array, foreground)
        if self.manifest.channels[0].modality == "CT":
            self._find_air(images[0].array, foreground)
        if len(self.pieces.get(1, ())) < INSTANCE_CASES:
            self._find_instances(numbered, volumes.get("instances"))

    def _numbered(self, array: np.ndarray) -> np.ndarray:
        """Return the position of each voxel's label among the sorted values; voxels to ignore come after the last."""
        table = {stored: self._position(value) for stored, value in self.manifest.label_of_value.items()}
        return replace_values(array, table, np.uint16)

    def _position(self, value: int) -> int:
        return self.values.index(value) if value in self.values else len(self.values)

    def _sample(self, channel: int, array: np.ndarray, foreground: np.ndarray) -> None:
        self.largest[channel] = max(self.largest[channel], float(array.max()))
        found = array[foreground]
        step = max(1, -(-found.size // self.samples_per_case))  # the same voxels in every run
        self.samples[channel].append(found[::step].astype(np.float32))

    def _find_air(self, array: np.ndarray, foreground: np.ndarray) -> None:
        for level, found in self.air.items():
            below = array < level
            found.append((float(below.mean()), int((below & foreground).sum())))

    def _find_instances(self, numbered: np.ndarray, instances: Sequence[Volume] | None) -> None:
        edge = INSTANCE_EDGE[numbered.ndim]
        middle = tuple(slice(max(0, (n - edge) // 2), max(0, (n - edge) // 2) + edge) for n in numbered.shape)
        part = numbered[middle]
        if instances:
            self.has_instances = True
            self.touch |= _touch(instances[0].array[middle])
        for number in range(1, len(self.values)):
            self.pieces.setdefault(number, []).append(_crowding(part == number, part == 0))

    def result(self) -> DataFingerprint:
        """Return the fingerprint of all cases."""
        manifest = self.manifest
        totals = np.sum(self.counts, axis=0)
        if not totals[1 : len(self.values)].sum():
            raise ManifestError(
                f"{manifest.name}: no case has a labelled voxel, in {len(self.counts)} cases; check the label maps"
            )
        names = sorted(manifest.labels, key=manifest.labels.__getitem__)
        labels = {}
        for position, name in enumerate(names):
            found = self.pieces.get(position, [(0, 0.0)])
            labels[name if position else "background"] = LabelFacts(
                value=manifest.labels[name],
                cases=sum(bool(counts[position]) for counts in self.counts),
                fraction=float(totals[position] / totals.sum()),
                pieces=float(np.median([count for count, _ in found])),
                crowding=float(max(crowding for _, crowding in found)),
            )
        return DataFingerprint(
            name=manifest.name,
            spatial_dims=manifest.spatial_dims,
            channels=[(channel.name, channel.modality) for channel in manifest.channels],
            labels=labels,
            shapes=self.shapes,
            nonzero_shapes=self.nonzero,
            spacings=self.spacings,
            intensities=[intensity_statistics(np.concatenate(of_channel)) for of_channel in self.samples],
            has_physical_spacing=not self.formats <= {"png", "jpeg", "tiff"} or manifest.spatial_dims == 3,
            has_instance_maps=self.has_instances,
            instances_touch=self.touch,
            air_below=self._air_below(int(totals[1 : len(self.values)].sum())),
            largest_values=self.largest,
            regions=dict(manifest.regions),
            regions_class_order=manifest.regions_class_order,
            seconds_per_case=float(np.median(self.seconds)) if self.seconds else 0.0,
        )

    def _air_below(self, labelled: int) -> float | None:
        for level, found in self.air.items():
            # a few labelled voxels of air are mistakes at the skin, or bubbles no tile is small enough for
            is_free = found and sum(count for _, count in found) <= 1e-4 * labelled
            if is_free and np.median([fraction for fraction, _ in found]) > 0.01:
                return level
        return None


def in_patient_order(grid: Grid) -> tuple[tuple[int, ...], tuple[float, ...], tuple[int, ...]]:
    """Return shape and spacing of a grid with its axes in the order right, anterior, superior, and that order."""
    axis_of = ["LRPAIS".index(letter) // 2 for letter in grid.orientation]
    order = tuple(int(axis) for axis in np.argsort(axis_of))
    return tuple(grid.shape[axis] for axis in order), tuple(grid.spacing[axis] for axis in order), order


def intensity_statistics(samples: np.ndarray) -> IntensityStatistics:
    """Describe a sample of intensities, at least one."""
    lower, median, upper = (float(value) for value in np.percentile(samples, PERCENTILES))
    mean, std = float(samples.mean(dtype=np.float64)), float(samples.std(dtype=np.float64))
    return IntensityStatistics(mean, std, float(samples.min()), lower, median, upper, float(samples.max()))


def _touch(instances: np.ndarray) -> bool:
    """Return True if two different objects share a face."""
    for axis in range(instances.ndim):
        first, second = np.moveaxis(instances, axis, 0)[:-1], np.moveaxis(instances, axis, 0)[1:]
        if ((first != second) & (first != 0) & (second != 0)).any():
            return True
    return False


def _crowding(mask: np.ndarray, background: np.ndarray) -> tuple[int, float]:
    """Return the number of pieces of a mask, and the fraction of the background that lies between two of them."""
    pieces, count = ndimage.label(mask)
    if count < 2 or not background.any():
        return count, 0.0
    from medseg.transforms.boundary_weight import two_nearest_distances

    first, second = two_nearest_distances(pieces, np.ones(mask.ndim), GAP_VOXELS)
    between = background & (first + second < GAP_VOXELS)
    return count, float(between.sum() / background.sum())
