"""Take blended blocks as they are finished and write native labels, keeping only the planes still needed."""

from __future__ import annotations

import torch

from medseg.inference.blending import FinishedBlock
from medseg.transforms.label_tail import LabelTail
from medseg.transforms.resample import memory_order


class NativeAssembly:
    """Restores each finished block at once: what lies between two blocks is interpolated when the second arrives.

    Blocks come in the order of `Blender`: slabs along the longest axis, rows along the second. Kept between blocks are
    the last planes of the slab before and the last rows of the block before, as many as the interpolation reaches
    back (one for linear, three for cubic, none where nothing is interpolated).

    Args:
        tail: restores a region from a block of the model grid.
        out: labels on the native grid, written in place.
        num_values: channels of the blocks.
    """

    def __init__(self, tail: LabelTail, out: torch.Tensor, num_values: int) -> None:
        self.tail = tail
        self.out = out
        self.num_values = num_values
        self.resampler = tail.resampler
        self.row_end = self.resampler.axes[1].model_size
        self.planes_before: torch.Tensor | None = None
        self.planes_next: torch.Tensor | None = None
        self.rows_before: torch.Tensor | None = None

    def add(self, block: FinishedBlock) -> None:
        """Write the native voxels that the block completes; those of a block without values are background."""
        order = self.resampler.axis_order
        values = block.values
        if values is None:
            values = torch.zeros(self.num_values, *(part.stop - part.start for part in block.region))
        values = values.permute(0, *(axis + 1 for axis in order))
        slab, row = block.region[order[0]], block.region[order[1]]
        extended = self._extend(values, slab, row)
        plane_halo, row_halo = slab.stop - extended.shape[1], row.stop - extended.shape[2]
        origin = (plane_halo, row_halo, *([0] * (values.ndim - 3)))
        region = [
            self.resampler.ready(0, slab.start, slab.stop),
            self.resampler.ready(1, row.start, row.stop),
            *(slice(0, axis.native_size) for axis in self.resampler.axes[2:]),
        ]
        if block.values is None:
            self.out.permute(*self.resampler.native_axes)[tuple(region)] = self.tail.decision.label_values[0]
        else:
            self.tail(extended, origin, region, self.out)
        self._keep(extended, slab, row)

    def _extend(self, values: torch.Tensor, slab: slice, row: slice) -> torch.Tensor:
        """The block with the planes and rows before it that interpolation reaches back to."""
        planes = 0 if self.planes_before is None else self.planes_before.shape[1]
        rows = 0 if self.rows_before is None else self.rows_before.shape[2]
        if not planes and not rows:
            return values
        extended = self._empty(values, planes + values.shape[1], rows + values.shape[2])
        extended[:, planes:, rows:] = values
        if self.planes_before is not None:
            extended[:, :planes] = self.planes_before[:, :, row.start - rows : row.stop]
        if self.rows_before is not None:
            extended[:, planes:, :rows] = self.rows_before[:, -values.shape[1] :]
        return extended

    def _keep(self, extended: torch.Tensor, slab: slice, row: slice) -> None:
        plane_halo, row_halo = self.resampler.halos[:2]
        is_last_row = row.stop == self.row_end
        self.rows_before = extended[:, :, -row_halo:].clone() if row_halo and not is_last_row else None
        if plane_halo and slab.stop < self.resampler.axes[0].model_size:
            kept = extended[:, -plane_halo:, row.start - row.stop :]
            if self.planes_next is None:
                self.planes_next = self._empty(kept, kept.shape[1], self.row_end)
            self.planes_next[:, :, row.start : row.stop] = kept
        if is_last_row:
            self.planes_before, self.planes_next = self.planes_next, None

    @staticmethod
    def _empty(like: torch.Tensor, planes: int, rows: int) -> torch.Tensor:
        """Room for that many planes and rows, axes in memory as in `like`."""
        shape = (like.shape[0], planes, rows, *like.shape[3:])
        return torch.empty_permuted(shape, memory_order(like), dtype=like.dtype, device=like.device)
