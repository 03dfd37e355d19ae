"""A 2D network over the slices of volumes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from nibabel.orientations import io_orientation
from torch import nn

from medseg.errors import PlanError
from medseg.inference.predictor import Predictor
from medseg.inference.preprocessing import preprocessing
from medseg.inference.scan import Scan
from medseg.inference.segmentation import Segmentation
from medseg.inference.tiling.streaming import Window
from medseg.plan import Plan
from medseg.volumes import Grid, Volume

PATIENT_AXES = "RAS"


def scan_plan(plan: Plan) -> Plan:
    """The plan as far as reading a scan is concerned: of volumes where its 2D network goes over their slices."""
    if plan.slice_axis is None:
        return plan
    return replace(
        plan, spatial_dims=3, slice_axis=None, orientation=plan.orientation + plan.slice_axis, spacing=None,
        patch=(*plan.patch, 1), tile=(*plan.tile, 1),
    )  # fmt: skip


def plane_plan(plan: Plan) -> Plan:
    """The plan of a single slice: its axes are called as those of any 2D image, `LR` the first pair and `PA` the other.

    The grids of `Stack` are made alike.
    """
    names = {letter: "LRPA"[2 * n + pair.index(letter)] for n, pair in enumerate(plan.axis_pairs) for letter in pair}
    return replace(plan, slice_axis=None, orientation="".join(names[letter] for letter in plan.orientation))


@dataclass(frozen=True, eq=False)
class Stack:
    """The slices of a scan across one axis of the patient.

    An oblique scan is cut along its own voxels, across the axis of the file that lies closest to the patient's.

    Args:
        scan: a volume a channel.
        slice_axis: "R", "A" or "S".
    """

    scan: Scan
    slice_axis: str

    @cached_property
    def file_axis(self) -> int:
        """The axis of the file's array that is cut across."""
        return int(np.flatnonzero(self._orientation[:, 0] == PATIENT_AXES.index(self.slice_axis))[0])

    def __len__(self) -> int:
        return self.scan.reference.grid.shape[self.file_axis]

    def __iter__(self) -> Iterator[Scan]:
        grid = self._plane()
        for number in range(len(self)):
            yield Scan(
                tuple(Volume(volume.array[self.place(number)], grid, volume.path) for volume in self.scan.channels)
            )

    def place(self, number: int) -> tuple[slice | int, ...]:
        """Where a slice lies in an array on the scan's grid."""
        return tuple(number if axis == self.file_axis else slice(None) for axis in range(3))

    @cached_property
    def _orientation(self) -> np.ndarray:
        return io_orientation(self.scan.reference.grid.affine)

    def _plane(self) -> Grid:
        """The grid of every slice: straight, with the file's spacing and, for volumes, its distance of slices."""
        grid, orientation = self.scan.reference.grid, self._orientation
        rows = [axis for axis in range(3) if axis != PATIENT_AXES.index(self.slice_axis)]
        columns = [axis for axis in range(3) if axis != self.file_axis]
        affine = np.eye(4)
        affine[:2, :2] = 0
        for column, axis in enumerate(columns):
            affine[rows.index(int(orientation[axis, 0])), column] = orientation[axis, 1] * grid.spacing[axis]
        affine[2, 2] = grid.voxel_volume_mm3 / (grid.spacing[columns[0]] * grid.spacing[columns[1]])
        return Grid(tuple(grid.shape[axis] for axis in columns), affine)


class SlicePredictor(Predictor):
    """A Predictor whose 2D network takes a volume slice by slice across the plan's `slice_axis`.

    Each slice is prepared as the 2D images of the training were, normalisation included, and nothing is interpolated
    between slices: the result equals predicting each of them alone and stacking the labels on the scan's own grid.

    Args:
        network: as of `Predictor`, in two dimensions.
        plan: states `slice_axis`.
        device: as of `Predictor`.
        **options: further arguments of `Predictor`; on_tiles counts the tiles of all slices.

    Raises:
        PlanError: the plan states no slice_axis; and as `Predictor`.
    """

    def __init__(
        self, network: nn.Module | Sequence[nn.Module], plan: Plan, device: str | torch.device = "auto", **options: Any
    ) -> None:
        if plan.slice_axis is None:
            raise PlanError(f"{plan.source}: states no slice_axis (R, A or S), across which volumes are cut")
        super().__init__(network, plan, device, **options)
        self.slice_axis = plan.slice_axis
        self.plane = plane_plan(plan)
        self.preprocess = preprocessing(self.plane)
        self.workload = replace(self.workload, plan=self.plane)

    def predict(self, source: Any) -> Segmentation:
        """Segment one volume; as `Predictor.predict`."""
        return self._predict_source(source, scan_plan(self.plan))

    def predict_scan(self, scan: Scan, read_seconds: float = 0.0) -> Segmentation:
        """Segment a volume that is already in memory."""
        stack = Stack(scan, self.slice_axis)
        one = copy(self)  # its own plan, progress and window, while this predictor keeps those of the caller
        one.plan = self.plane
        if self.max_ram is not None:
            one.window, one.max_ram = self._fit(stack, self.max_ram), None
        records: list[Mapping[str, Any]] = []
        intervals: list[Mapping[str, Sequence[float]]] = []
        arrays: dict[str, np.ndarray] = {}
        for number, part in enumerate(stack):
            one.on_tiles = None if self.on_tiles is None else _counted(self.on_tiles, number, len(stack))
            segmentation = Predictor.predict_scan(one, part)
            for name, values in _arrays(segmentation).items():
                if number == 0:
                    arrays[name] = np.zeros(scan.reference.grid.shape, dtype=values.dtype)
                arrays[name][stack.place(number)] = values
            records.append(segmentation.provenance)
            intervals += [] if segmentation.intervals_ml is None else [segmentation.intervals_ml]
        probabilities = {name: arrays[name] for name in self.channel_names} if self.save_probabilities else None
        return Segmentation(
            arrays[""], dict(self.plan.labels), scan.reference,
            _merged_record(records, scan, self.plan, read_seconds), entropy=arrays.get("/entropy"),
            probabilities=probabilities, intervals_ml=_summed(intervals),
        )  # fmt: skip

    def _fit(self, stack: Stack, limit: int) -> Window:
        """The window for every slice, with what is kept of all of them counted once.

        Raises:
            MemoryLimitError: the limit cannot be kept.
        """
        return replace(self.workload, kept_slices=len(stack)).fit(next(iter(stack)), self.window, limit)


def _counted(report: Callable[[int, int], None], number: int, count: int) -> Callable[[int, int], None]:
    """Progress within one slice as progress within the volume: every slice has as many tiles."""
    return lambda done, total: report(number * total + done, count * total)


def _arrays(segmentation: Segmentation) -> dict[str, np.ndarray]:
    """Labels, probabilities by label and entropy; the names of the first and last are none of a label."""
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
    """The intervals of the whole volume: voxels are counted, so the slices' add up; None where none was asked for."""
    if not intervals:
        return None
    return {name: np.sum([each[name] for each in intervals], axis=0).tolist() for name in intervals[0]}
