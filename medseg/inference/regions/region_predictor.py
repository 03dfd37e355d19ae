"""Predict a whole scan with a network that was trained on crops."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from math import ceil, prod
from time import perf_counter
from typing import Any

import numpy as np
import torch
from monai.transforms import Orientation
from torch import nn

from medseg.inference.inferers import SlidingWindowInferer
from medseg.inference.memory import MemoryEstimate, keep_freed_memory, too_little
from medseg.inference.predictor import Predictor
from medseg.inference.preprocessing import AXIS_LABELS
from medseg.inference.regions.atlas import SCALES
from medseg.inference.regions.region_inferer import RegionInferer, RegionLogits
from medseg.inference.scan import Scan
from medseg.inference.segmentation import Segmentation, provenance_record
from medseg.machine import resident_bytes
from medseg.plan import Plan
from medseg.transforms.restore.label_decision import CHUNK_VALUES, CHUNK_VOXELS, SLAB_PLANES, apply_head
from medseg.transforms.restore.restore_labels import restore_labels

# Boxes are moved onto what is found in them, by a few millimetres.
BOX_MARGIN_MM = 10.0


class RegionPredictor(Predictor):
    """A Predictor whose network is applied to the regions of its plan.

    Args:
        network: as of `Predictor`; its output channels are those of the plan's regions.
        plan: has `regions`; the template lies in the folder of the bundle the plan was read from.
        device: as of `Predictor`.
        centers_mm: centre of regions in mm of every scan (RAS+), by name; these regions are not searched for.
        **options: further arguments of `Predictor`; `interpolation` has no effect, because logits are resampled from
            the boxes to the scan's voxels at once.

    Raises:
        RegionError: the plan has no regions, its template cannot be used, or centers_mm names an unknown region.
    """

    def __init__(
        self,
        network: nn.Module | Sequence[nn.Module],
        plan: Plan,
        device: str | torch.device = "auto",
        *,
        centers_mm: Mapping[str, Sequence[float]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(network, plan, device, **options)
        window = SlidingWindowInferer(plan.tile, self.window.batch_size, self.window.overlap, self.window.blending)
        self.inferer = RegionInferer(window, plan, centers_mm=centers_mm)

    def memory(self, scan: Scan) -> MemoryEstimate:
        """Estimate the memory of one prediction.

        Args:
            scan: as read.
        """
        workload = self.workload()
        network = workload.network_bytes(self.window.batch_size)
        grid, itemsize = scan.reference.grid, torch.float32.itemsize
        voxels, labels = prod(grid.shape), len(self.plan.labels)
        image = itemsize * len(scan.channels) * voxels
        kept = (self.decision.dtype.itemsize + workload.observer_bytes) * voxels
        # Boxes that are turned by 30 degrees fill a window of twice their size.
        regions = self.inferer.regions
        sizes, centers = (np.array([getattr(r, name) for r in regions]) for name in ("size_mm", "center_mm"))
        spans = SCALES[1] * np.ptp(centers, axis=0) + sizes.max(axis=0) + BOX_MARGIN_MM
        window, inner = (
            min(ceil(2 * float(np.prod(mm)) / grid.voxel_volume_mm3), voxels) for mm in (spans, sizes.max(axis=0))
        )
        # Logits of the window; per box, its logits thrice and positions in double precision.
        boxes = itemsize * (labels * window + (3 * self.plan.out_channels + 14) * inner)
        if workload.is_observed:
            restoring = itemsize * min(CHUNK_VALUES // labels, voxels) * (5 * labels + 4)
        else:
            plane = prod(grid.shape[1:])
            restoring = itemsize * (2 * SLAB_PLANES * plane + 5 * max(CHUNK_VOXELS, plane))
        # The scan as a tensor, turned, and smoothed.
        return MemoryEstimate(resident_bytes(), 3 * image, image + kept, boxes + restoring, network)

    @property
    def channel_names(self) -> list[str]:
        """Label of each channel of the merged logits, whose labels are those of all regions together."""
        return self.plan.label_names[len(self.plan.labels) - self.decision.num_channels :]

    def _segment_scan(self, scan: Scan, read_seconds: float) -> Segmentation:
        if self.max_ram is not None:
            keep_freed_memory(False)
            estimate = self.memory(scan)
            if estimate.total > self.max_ram:
                raise too_little(scan.name, estimate, self.max_ram)
        started = perf_counter()
        grid = scan.reference.grid
        image = Orientation(axcodes=self.plan.orientation, labels=AXIS_LABELS)(scan.to_tensor())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            found = self._predict_regions(image.as_tensor(), image.affine.numpy(), scan.name)
        predicted = perf_counter()
        kept = self.observers(grid)
        labels = restore_labels(
            found.logits, found.affine, grid.affine, grid.shape, self.decision, observers=kept.all
        )  # fmt: skip
        seconds = {"read": read_seconds, "predict": predicted - started, "restore": perf_counter() - predicted}
        notes = [*scan.notes, *(str(w.message) for w in caught if issubclass(w.category, UserWarning))]
        settings = {**self._settings(), "backend_reason": self.backend_reason, "regions": _described(found)}
        record = provenance_record(self.plan, self.bundle, self.weights_sha256, settings, scan, seconds, notes)
        return kept.segmentation(labels.numpy(), self.plan, scan, record, self.calibration)

    def _predict_regions(self, image: torch.Tensor, affine: Any, name: str) -> RegionLogits:
        done, per_box = 0, 2 * len(self.inferer.regions)

        def network(tiles: torch.Tensor) -> torch.Tensor:
            nonlocal done
            done += len(tiles)
            if self.on_tiles is not None:
                self.on_tiles(done, max(done, per_box))
            return _logits(self.predict_tiles, self.backend.head_weight, self.backend.head_bias, tiles)

        return self.inferer.predict(image, affine, network, name=name)

    def _settings(self) -> dict[str, Any]:
        centers = {name: [float(c) for c in center] for name, center in self.inferer.centers_mm.items()}
        return {**super()._settings(), "region_centers_mm": centers}


def _logits(
    values: Callable[[torch.Tensor], torch.Tensor],
    head_weight: torch.Tensor | None,
    head_bias: torch.Tensor | None,
    tiles: torch.Tensor,
) -> torch.Tensor:
    """Run a backend, and the 1×1×1 head that it may have left to its caller."""
    found = values(tiles).to("cpu", torch.float32)
    if head_weight is None:
        return found
    bias = None if head_bias is None else head_bias.cpu()
    return torch.stack([apply_head(each, head_weight.cpu(), bias) for each in found])


def _described(found: RegionLogits) -> dict[str, Any]:
    """Return where the regions were found, for the record."""
    centers = {name: [round(float(c), 2) for c in box.corners_mm().mean(axis=0)] for name, box in found.boxes.items()}
    return {**found.location.to_dict(), "centers_mm": centers}
