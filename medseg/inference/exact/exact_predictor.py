"""Segment scans with a network of nnU-Net, exactly as nnU-Net does."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from time import perf_counter
from typing import Any, Literal

import torch

from medseg.errors import OptionError
from medseg.inference.exact.exact_grid import exact_grid, logits_step
from medseg.inference.exact.exact_image import exact_image, exact_image_bytes
from medseg.inference.exact.exact_tiles import ExactWindow, exact_bytes, predict_exact
from medseg.inference.memory import MemoryEstimate, Workload, forward_bytes
from medseg.inference.predictor import Predictor
from medseg.inference.scan import Scan
from medseg.inference.scan_size import refuse_growth
from medseg.inference.segmentation import Segmentation, provenance_record
from medseg.inference.tiling.streaming import Window
from medseg.inference.uncertainty import ProbabilityMaps, Uncertainty
from medseg.machine import resident_bytes
from medseg.plan import Plan


class ExactPredictor(Predictor):
    """Segment scans by the rules of another program, which the plan's `resampling` states.

    The steps are those of nnU-Net 2: axes as stored, crop to the voxels that are not zero, normalisation, resampling,
    tiles at equal distances blended in half precision, logits of each member of an ensemble averaged after blending,
    and labels decided after linear resampling. A 2D network segments volumes slice by slice along the first axis of the
    model grid. The arguments are those of `Predictor`.

    Raises:
        OptionError: another interpolation than linear is requested; and as `Predictor`.
    """

    blends_members = True

    def _window(self, overlap: float | None, batch_size: int, interpolation: Literal["linear", "cubic"]) -> Window:
        if interpolation != "linear":
            raise OptionError(f"interpolation must be linear, because the plan repeats nnU-Net; found {interpolation}")
        plan = self.plan
        tile = tuple(plan.tile) if plan.spatial_dims == 3 else (1, *plan.tile)
        return ExactWindow(tile, plan.overlap if overlap is None else overlap, plan.blending, batch_size)

    @property
    def scan_plan(self) -> Plan:
        """The plan for reading a scan: a 2D network that segments slices reads volumes."""
        plan = self.plan
        if plan.slice_axis is None:
            return plan
        return replace(
            plan, spatial_dims=3, slice_axis=None, orientation=f"{plan.slice_axis}{plan.orientation}", spacing=None,
            patch=(1, *plan.patch), tile=(1, *plan.tile),
        )  # fmt: skip

    def _segment_scan(self, scan: Scan, read_seconds: float) -> Segmentation:
        native = scan.reference.grid
        whole = exact_grid(native, self.plan)
        if not self.force:
            factor = prod(whole.model_shape) / prod(whole.shape)
            refuse_growth(scan.name, native, factor, whole.model_spacing, ", or use medseg predict --force")
        window = self.window if self.max_ram is None else self.workload().fit(scan, self.window, self.max_ram)
        return self._predict_image(scan, window, self.on_tiles, read_seconds)

    def _predict_image(
        self, scan: Scan, window: Window, on_tiles: Callable[[int, int], None] | None, read_seconds: float = 0.0
    ) -> Segmentation:
        started, native = perf_counter(), scan.reference.grid
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            image, grid = exact_image([volume.array for volume in scan.channels], native, self.plan, scan.name)
        notes = [*scan.notes, *(str(w.message) for w in caught if issubclass(w.category, UserWarning))]
        prepared, channels = perf_counter(), (self.decision.num_channels, self.plan.activation)
        uncertainty = Uncertainty(grid.box_shape, *channels) if self.uncertainty else None
        maps = ProbabilityMaps(grid.box_shape, *channels) if self.save_probabilities else None
        labels = predict_exact(
            image, grid, logits_step(self.plan), self.predict_tiles, self.decision, window, self.backend_members,
            observers=[each for each in (uncertainty, maps) if each is not None], on_tiles=on_tiles,
        )  # fmt: skip
        background = self.decision.label_values[0]
        seconds = {"read": read_seconds, "preprocess": prepared - started, "predict": perf_counter() - prepared}
        settings = {**self._settings(), "tiles_left_out": 0, "backend_reason": self.backend_reason}
        names = self.channel_names
        return Segmentation(
            grid.in_whole_scan(labels.numpy(), background), dict(self.plan.labels), scan.reference,
            provenance_record(self.plan, self.bundle, self.weights_sha256, settings, scan, seconds, notes),
            entropy=None if uncertainty is None else grid.in_whole_scan(uncertainty.entropy, 0),
            probabilities=None if maps is None else {
                name: grid.in_whole_scan(values, float(name == "background"))
                for name, values in zip(names, maps.maps, strict=True)
            },
            intervals_ml=None if uncertainty is None else uncertainty.intervals_ml(names, native.voxel_volume_mm3),
            regions=dict(self.plan.label_regions or {}),
        )  # fmt: skip

    def predict_tiles(self, tiles: torch.Tensor) -> torch.Tensor:
        """Return the logits of tiles (B, C, *tile), averaged over test-time flips; a 2D network gets their one slice.

        The logits of the members of an ensemble follow each other.
        """
        if self.plan.spatial_dims == 3:
            return super().predict_tiles(tiles)
        return super().predict_tiles(tiles[:, :, 0])[:, :, None]

    @property
    def backend_members(self) -> int:
        """Number of networks whose logits the backend returns side by side."""
        return getattr(self.backend, "num_stacked", 1)

    def workload(self, kept_slices: int = 0) -> Workload:
        """Return what estimates the memory of a prediction; see `Predictor.workload`."""
        usual = super().workload(kept_slices)
        return ExactWorkload(**vars(usual), num_members=self.backend_members)

    def _settings(self) -> dict[str, Any]:
        return {**super()._settings(), "resampling": "nnunet"}


@dataclass(frozen=True)
class ExactWorkload(Workload):
    """Estimate the memory of a prediction by nnU-Net's rules, as if no voxel of the scan were cropped.

    Args:
        num_members: networks whose logits are blended side by side.
    """

    num_members: int = 1

    def estimate(self, scan: Scan, window: Window, network_bytes: int | None = None) -> MemoryEstimate:
        """Estimate the memory of one prediction; see `Workload.estimate`."""
        network = self.network_bytes(window.batch_size) if network_bytes is None else network_bytes
        native = scan.reference.grid
        grid = exact_grid(native, self.plan)
        held, blending = exact_bytes(
            grid, logits_step(self.plan), self.plan.in_channels, self.decision, window, self.num_members,
            bool(self.observer_bytes),
        )  # fmt: skip
        # The labels of the box, and those of the whole scan.
        results = (self.decision.dtype.itemsize + self.observer_bytes) * 2 * prod(native.shape)
        preprocess = exact_image_bytes(grid, self.plan.in_channels)
        return MemoryEstimate(resident_bytes(), preprocess, held + results, blending, network, window.is_pipelined)

    def network_bytes(self, batch_size: int) -> int:
        """Return the memory of one forward pass; 0 if the network runs in a device's own memory."""
        if self.backend.device.type != "cpu":
            return 0
        tile = self.plan.tile if self.plan.spatial_dims == 3 else (1, *self.plan.tile)
        return forward_bytes(self.predict, (batch_size, self.plan.in_channels, *tile))
