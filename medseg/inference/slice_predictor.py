"""Segment volumes with a 2D network, slice by slice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from nibabel.orientations import io_orientation

from medseg.errors import PlanError
from medseg.inference.confidence import VolumeCounts
from medseg.inference.predictor import Predictor
from medseg.inference.scan import Scan
from medseg.inference.scan_size import check_growth, check_memory
from medseg.inference.segmentation import Segmentation
from medseg.plan import Plan
from medseg.volumes import Grid, Volume

PATIENT_AXES = "RAS"


class SlicePredictor(Predictor):
    """Segment volumes slice by slice across the plan's `slice_axis`, with a 2D network.

    Each slice is preprocessed as the 2D images of the training were, normalisation included, and nothing is
    interpolated between slices. The result equals predicting each slice alone and stacking the labels on the scan's
    grid. The arguments are those of `Predictor`; `on_tiles` counts the tiles of all slices.

    Raises:
        PlanError: the plan has no slice_axis; and as `Predictor`.
    """

    @staticmethod
    def _image_plan(plan: Plan) -> Plan:
        return plane_plan(plan)

    @property
    def scan_plan(self) -> Plan:
        """The plan for reading a scan: that of a volume which holds the slices."""
        plan = self.plan
        return replace(
            plan, spatial_dims=3, slice_axis=None, orientation=f"{plan.orientation}{plan.slice_axis}", spacing=None,
            patch=(*plan.patch, 1), tile=(*plan.tile, 1),
        )  # fmt: skip

    def _segment_scan(self, scan: Scan, read_seconds: float) -> Segmentation:
        stack = Stack(scan, str(self.plan.slice_axis))
        slice_grid = next(iter(stack)).reference.grid
        check_growth(scan.name, slice_grid, self.image_plan, self.force)
        check_memory(scan.name, slice_grid, self.image_plan)
        window = self.window
        if self.max_ram is not None:
            window = self.workload(kept_slices=len(stack)).fit(next(iter(stack)), window, self.max_ram)
        records: list[Mapping[str, Any]] = []
        intervals: list[Mapping[str, Sequence[float]]] = []
        arrays: dict[str, np.ndarray] = {}
        calibration = self.calibration
        counts = None if calibration is None else VolumeCounts(self.channel_names, calibration.temperature)
        for number, image in enumerate(stack):
            on_tiles = None if self.on_tiles is None else _counting_all_slices(self.on_tiles, number, len(stack))
            segmentation = self._predict_image(image, window, on_tiles)
            for name, values in _arrays(segmentation).items():
                if number == 0:
                    arrays[name] = np.zeros(scan.reference.grid.shape, dtype=values.dtype)
                arrays[name][stack.index(number)] = values
            if counts is not None and segmentation.counts is not None:
                counts.add(segmentation.counts)
            records.append(segmentation.provenance)
            intervals += [] if segmentation.intervals_ml is None else [segmentation.intervals_ml]
        probabilities = {name: arrays[name] for name in self.channel_names} if self.save_probabilities else None
        segmentation = Segmentation(
            arrays[""], dict(self.plan.labels), scan.reference,
            _merged_record(records, scan, self.plan, read_seconds), entropy=arrays.get("/entropy"),
            probabilities=probabilities, intervals_ml=_summed(intervals), regions=dict(self.plan.label_regions or {}),
        )  # fmt: skip
        if calibration is None or counts is None:
            return segmentation
        intervals_ml = counts.intervals_ml(calibration, scan.reference.grid.voxel_volume_mm3)
        return replace(
            segmentation, counts=counts, intervals_ml=intervals_ml or segmentation.intervals_ml,
            predicted_dice=counts.predicted_dice(calibration) or None,
        )  # fmt: skip


def plane_plan(plan: Plan) -> Plan:
    """Return the plan of a single slice, whose axes are named as those of any 2D image: L–R, then P–A.

    Raises:
        PlanError: the plan has no slice_axis.
    """
    if plan.slice_axis is None:
        raise PlanError(
            f"{plan.source}: has no slice_axis, which a 2D network needs to segment volumes slice by slice; state R, "
            "A or S"
        )
    names = {letter: "LRPA"[2 * n + pair.index(letter)] for n, pair in enumerate(plan.axis_pairs) for letter in pair}
    return replace(plan, slice_axis=None, orientation="".join(names[letter] for letter in plan.orientation))


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices of a scan across one axis of the patient.

    An oblique scan is cut along its own voxels, across the axis of the file that is closest to the patient's.

    Args:
        scan: one volume per channel.
        slice_axis: "R", "A" or "S".
    """

    scan: Scan
    slice_axis: str

    @cached_property
    def file_axis(self) -> int:
        """Axis of the file's array that the slices cut across."""
        return int(np.flatnonzero(self._orientation[:, 0] == PATIENT_AXES.index(self.slice_axis))[0])

    def __len__(self) -> int:
        return self.scan.reference.grid.shape[self.file_axis]

    def __iter__(self) -> Iterator[Scan]:
        grid = self._slice_grid()
        for number in range(len(self)):
            yield Scan(
                tuple(Volume(volume.array[self.index(number)], grid, volume.path) for volume in self.scan.channels)
            )

    def index(self, number: int) -> tuple[slice | int, ...]:
        """Return the index of a slice in an array on the scan's grid."""
        return tuple(number if axis == self.file_axis else slice(None) for axis in range(3))

    @cached_property
    def _orientation(self) -> np.ndarray:
        return io_orientation(self.scan.reference.grid.affine)

    def _slice_grid(self) -> Grid:
        """Return the grid of every slice: its axes are perpendicular, its spacing and slice distance are the file's."""
        grid, orientation = self.scan.reference.grid, self._orientation
        rows = [axis for axis in range(3) if axis != PATIENT_AXES.index(self.slice_axis)]
        columns = [axis for axis in range(3) if axis != self.file_axis]
        affine = np.eye(4)
        affine[:2, :2] = 0
        for column, axis in enumerate(columns):
            affine[rows.index(int(orientation[axis, 0])), column] = orientation[axis, 1] * grid.spacing[axis]
        affine[2, 2] = grid.voxel_volume_mm3 / (grid.spacing[columns[0]] * grid.spacing[columns[1]])
        return Grid(tuple(grid.shape[axis] for axis in columns), affine)


def _counting_all_slices(report: Callable[[int, int], None], number: int, count: int) -> Callable[[int, int], None]:
    """Turn the progress within one slice into progress within the volume. Every slice has the same number of tiles."""
    return lambda done, total: report(number * total + done, count * total)


def _arrays(segmentation: Segmentation) -> dict[str, np.ndarray]:
    """Return labels (""), probabilities by label, and entropy ("/entropy"), under names that no label has."""
    entropy = {} if segmentation.entropy is None else {"/entropy": segmentation.entropy}
    return {"": segmentation.array, **(segmentation.probabilities or {}), **entropy}


def _merged_record(records: Sequence[Mapping[str, Any]], scan: Scan, plan: Plan, read_seconds: float) -> dict[str, Any]:
    seconds = {name: round(sum(record["seconds"][name] for record in records), 3) for name in records[0]["seconds"]}
    warnings = [*scan.notes, *(note for record in records for note in record["warnings"])]
    return {
        **records[-1],
        "tiles_left_out": sum(record["tiles_left_out"] for record in records),
        "plan_sha256": plan.digest,
        "slice_axis": plan.slice_axis,
        "input_sha256": list(scan.input_sha256),
        "seconds": {**seconds, "read": round(read_seconds, 3)},
        "warnings": list(dict.fromkeys(warnings)),
    }


def _summed(intervals: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, list[float]] | None:
    """Add up the slices' intervals, which count voxels; None if there are none."""
    if not intervals:
        return None
    return {name: np.sum([each[name] for each in intervals], axis=0).tolist() for name in intervals[0]}
