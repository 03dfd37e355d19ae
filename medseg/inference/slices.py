"""A volume as a stack of two-dimensional images, each along the patient's axes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from nibabel.orientations import io_orientation

from medseg.inference.scan import Scan
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
