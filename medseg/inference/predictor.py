"""Segment one scan: preprocess it, predict its tiles, and restore the labels to the scan's own grid."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from time import perf_counter
from typing import Any, Literal

import torch
from torch import nn

from medseg.errors import OptionError, PlanError
from medseg.inference.backends.choice import GoldenCheck, choose_backend
from medseg.inference.backends.quantization import Ranges
from medseg.inference.backends.torch_backend import choose_device
from medseg.inference.confidence import Calibration, VolumeCounts
from medseg.inference.memory import Workload, parse_bytes
from medseg.inference.plausibility import (
    Fingerprint,
    check_field_of_view,
    field_of_view_problem,
    measure,
    suspicions,
)
from medseg.inference.preprocessing import PreparedImage, model_image, normalize_in_place, prepared_by_monai
from medseg.inference.scan import Scan, ScanSource, load_scan
from medseg.inference.scan_size import check_growth, check_memory, warn_of_small_voxels
from medseg.inference.segmentation import Segmentation, map_names, provenance_record
from medseg.inference.tiling.streaming import Window, predict_labels
from medseg.inference.tiling.tiles import air_tiles
from medseg.inference.uncertainty import Observers, ProbabilityMaps, Uncertainty
from medseg.networks.precision import PrecisionChoice
from medseg.plan import Plan
from medseg.transforms.restore.grid_map import map_grids
from medseg.transforms.restore.label_decision import LabelDecision
from medseg.volumes import Grid

logger = logging.getLogger(__name__)

# Tiles per forward pass on a GPU: one tile rarely keeps it busy.
BATCH_ON_DEVICES = 4


class Predictor:
    """Segment scans with a network and the plan that it was trained with.

    Args:
        network: maps tiles (B, C, *tile) to logits (B, K, *tile). Several networks are an ensemble, whose logits are
            averaged. A network is put into eval mode and moved to the device.
        plan: the values that the network was trained with.
        device: "auto", "cpu", "cuda", "cuda:1", "mps" or a torch device.
        backend: "torch", "openvino" or "auto"; see `choose_backend`.
        precision: "auto", "fp32", "bf16", "fp16" or "int8"; see `choose_backend`.
        overlap: fraction of a tile shared with its neighbour, in [0, 1); None takes the plan's.
        batch_size: tiles per forward pass; None takes 1 on a CPU and 4 on other devices. A batch that does not fit into
            a device's memory is halved.
        interpolation: method used for logits from the model grid to the scan's grid.
        tta: "flip" averages the logits over flips along the plan's mirror_axes.
        max_ram: memory limit of the whole process, as "4GB" or in bytes. A scan for which it cannot be kept is refused
            before the work starts. Tiles are then merged in this memory, else on the network's device.
        save_probabilities: keep the probability of every class.
        uncertainty: keep an entropy map, and an interval for the volume of each structure.
        golden_check: decides whether low precision may be used; without it, "auto" is "fp32". See `choose_backend`.
        int8_ranges: what int8 needs, per network; see `choose_backend`.
        bundle: name of the bundle, for the record beside each result.
        weights_sha256: digests of the weights, for the record.
        on_tiles: called with (tiles done, total number of tiles) of the current scan.
        fingerprint: what the training cases were like. Whole scans are refused by a network that was trained on crops,
            and results unlike all training cases are suspicious; None checks nothing.
        force: predict scans that the fingerprint would have refused, whose results are suspicious, and scans whose
            voxels are so large that the model grid is huge.
        calibration: temperature of the probabilities and entropies, and what turns them into intervals of volumes; it
            never changes a label. None leaves the probabilities as they are.

    Raises:
        PlanError: flips are requested, but the network was not trained to mirror.
        OptionError: an option has a value that does not exist.
        BackendError: the backend is not installed.
    """

    # Whether the logits of every member of an ensemble are blended by themselves, and features are never blended.
    blends_members = False

    def __init__(
        self,
        network: nn.Module | Sequence[nn.Module],
        plan: Plan,
        device: str | torch.device = "auto",
        *,
        backend: Literal["auto", "torch", "openvino"] = "auto",
        precision: PrecisionChoice = "auto",
        overlap: float | None = None,
        batch_size: int | None = None,
        interpolation: Literal["linear", "cubic"] = "linear",
        tta: Literal["none", "flip"] = "none",
        max_ram: str | int | None = None,
        save_probabilities: bool = False,
        uncertainty: bool = False,
        golden_check: GoldenCheck | None = None,
        int8_ranges: Sequence[Ranges] = (),
        bundle: str = "",
        weights_sha256: Sequence[str] = (),
        on_tiles: Callable[[int, int], None] | None = None,
        fingerprint: Fingerprint | None = None,
        force: bool = False,
        calibration: Calibration | None = None,
    ) -> None:
        if tta not in ("none", "flip"):
            raise OptionError(f"tta must be none or flip, found {tta!r}")
        if interpolation not in ("linear", "cubic"):
            raise OptionError(f"interpolation must be linear or cubic, found {interpolation!r}")
        if overlap is not None and not 0 <= overlap < 1:
            raise OptionError(f"overlap must be at least 0 and below 1, found {overlap}")
        if batch_size is not None and batch_size < 1:
            raise OptionError(f"batch_size must be at least 1, found {batch_size}")
        if interpolation == "cubic" and plan.restoring == "labels":
            raise OptionError(f"interpolation must be linear, because {plan.name} restores labels and not logits")
        self.plan = plan
        self.image_plan = self._image_plan(plan)
        self.flips = flip_axes(plan) if tta == "flip" else ()
        networks = [network] if isinstance(network, nn.Module) else list(network)
        chosen = choose_device(device)
        batch_size = batch_size or (1 if chosen.type == "cpu" else BATCH_ON_DEVICES)
        tiles = (batch_size, plan.in_channels, *plan.tile)
        self.backend, self.backend_reason = choose_backend(
            networks, chosen, tiles, backend, precision, golden_check, self.blends_members, int8_ranges
        )
        self.window = self._window(overlap, batch_size, interpolation)
        self.decision = LabelDecision(plan.label_values, plan.activation, plan.restoring == "probabilities")
        self.max_ram = None if max_ram is None else parse_bytes(max_ram)
        self.save_probabilities = save_probabilities
        self.uncertainty = uncertainty
        self.bundle = bundle
        self.weights_sha256 = tuple(weights_sha256)
        self.on_tiles = on_tiles
        self.fingerprint = fingerprint
        self.force = force
        self.calibration = calibration

    def _window(self, overlap: float | None, batch_size: int, interpolation: Literal["linear", "cubic"]) -> Window:
        """Return the settings of the sliding window."""
        plan = self.plan
        return Window(
            tuple(plan.tile), plan.overlap if overlap is None else overlap, plan.blending, batch_size,
            "nearest" if plan.restoring == "labels" else interpolation, plan.padding or "constant",
        )  # fmt: skip

    @staticmethod
    def _image_plan(plan: Plan) -> Plan:
        """Return the plan of the images that are given to the network."""
        return plan

    @property
    def scan_plan(self) -> Plan:
        """The plan for reading a scan: its channels and axes."""
        return self.plan

    def predict(self, source: ScanSource) -> Segmentation:
        """Segment one scan.

        Args:
            source: a path, a list of paths (one per channel), a nibabel or SimpleITK image, or (array, affine).

        Returns:
            Labels on the scan's own grid.

        Raises:
            VolumeError: the scan cannot be read, or does not fit the plan.
            GeometryError: its channels lie on different grids, or as `predict_scan`.
            MemoryLimitError: max_ram cannot be kept.
            ScanError: the scan's field of view is too large for a network that was trained on crops.
        """
        started = perf_counter()
        scan = load_scan(source, self.scan_plan)
        for note in scan.notes:
            logger.warning(note)
        segmentation = self.predict_scan(scan, read_seconds=perf_counter() - started)
        for suspicion in segmentation.suspicions:
            logger.warning(f"{scan.name}: suspicious: {suspicion}")
        return segmentation

    def predict_scan(self, scan: Scan, read_seconds: float = 0.0) -> Segmentation:
        """Segment a scan that is already in memory.

        Args:
            scan: see `load_scan`.
            read_seconds: time it took to read the scan, for the record.

        Raises:
            GeometryError: its voxels are so large that the model grid would be huge (see `check_growth`).
            MemoryLimitError: max_ram cannot be kept, or the model grid does not fit into the machine's memory.
            ScanError: the scan's field of view is too large for a network that was trained on crops.
        """
        grid, fingerprint = scan.reference.grid, self.fingerprint
        if fingerprint is None:
            return self._segment_scan(scan, read_seconds)
        if not self.force:
            check_field_of_view(scan.name, grid, fingerprint)
        segmentation = self._segment_scan(scan, read_seconds)
        found = suspicions(measure(segmentation.array, self.plan.structures, grid), fingerprint)
        problem = field_of_view_problem(grid, fingerprint)
        return segmentation.with_suspicions([*([problem] if problem else []), *found])

    def _segment_scan(self, scan: Scan, read_seconds: float) -> Segmentation:
        check_growth(scan.name, scan.reference.grid, self.image_plan, self.force)
        check_memory(scan.name, scan.reference.grid, self.image_plan)
        window = self.window if self.max_ram is None else self.workload().fit(scan, self.window, self.max_ram)
        return self._predict_image(scan, window, self.on_tiles, read_seconds)

    def _predict_image(
        self, scan: Scan, window: Window, on_tiles: Callable[[int, int], None] | None, read_seconds: float = 0.0
    ) -> Segmentation:
        started = perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            image, skipped = self._prepare(scan, window)
        notes = [*scan.notes]
        notes += [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
        prepared = perf_counter()
        grid = scan.reference.grid
        if window.interpolation == "cubic" and _is_sheared(image, grid):
            notes.append(f"{scan.name}: restored by linear interpolation, because its axes are not perpendicular")
        merge = partial(self._merge, image, grid, window, on_tiles, skipped)
        try:
            labels, kept = merge(self.merging_device)
        except torch.OutOfMemoryError:
            if self.merging_device.type == "cpu":
                raise
            labels = None  # try again outside of the handler, because its traceback keeps the tensors alive
        if labels is None:
            notes.append(f"{scan.name}: too large for the memory of {self.merging_device}; tiles are merged on the CPU")
            logger.warning(notes[-1])
            labels, kept = merge(torch.device("cpu"))
        seconds = {"read": read_seconds, "preprocess": prepared - started, "predict": perf_counter() - prepared}
        settings = {**self._settings(), "tiles_left_out": len(skipped), "backend_reason": self.backend_reason}
        record = provenance_record(self.image_plan, self.bundle, self.weights_sha256, settings, scan, seconds, notes)
        return kept.segmentation(labels.numpy(), self.plan, scan, record, self.calibration)

    def observers(self, grid: Grid) -> Observers:
        """Return what is kept of the logits beside the labels of a scan on this grid."""
        names, activation = self.channel_names, self.plan.activation
        temperature = 1.0 if self.calibration is None else self.calibration.temperature
        return Observers(
            Uncertainty(grid.shape, len(names), activation, temperature) if self.uncertainty else None,
            ProbabilityMaps(grid.shape, len(names), activation, temperature) if self.save_probabilities else None,
            None if self.calibration is None else VolumeCounts(names, temperature),
            names,
        )

    @property
    def merging_device(self) -> torch.device:
        """Return where tiles are merged and labels decided: on the network's device, or on the CPU with `max_ram`."""
        return torch.device("cpu") if self.max_ram is not None else self.backend.device

    def _merge(
        self,
        image: PreparedImage,
        grid: Grid,
        window: Window,
        on_tiles: Callable[[int, int], None] | None,
        skipped: frozenset[tuple[int, ...]],
        device: torch.device,
    ) -> tuple[torch.Tensor, Observers]:
        """Return the labels on the scan's grid, and what is kept beside them."""
        kept = self.observers(grid)
        labels = predict_labels(
            image.values, image.affine, grid.affine, grid.shape, self.predict_tiles, self.decision, window,
            self.backend.head_weight, self.backend.head_bias,
            observers=kept.all, on_tiles=on_tiles, skipped=skipped, device=device,
        )  # fmt: skip
        return labels, kept

    def _prepare(self, scan: Scan, window: Window) -> tuple[PreparedImage, frozenset[tuple[int, ...]]]:
        """Return the network's input, and the tiles that need not be predicted because they hold only air."""
        plan = self.image_plan
        warn_of_small_voxels(scan.name, scan.reference.grid, plan)
        image = model_image(scan, plan)
        if image is None:
            return prepared_by_monai(scan, plan), frozenset()
        skipped: frozenset[tuple[int, ...]] = frozenset()
        # A skipped tile has a label but no logits, which probabilities and cubic interpolation around it would need.
        keeps_logits = self.uncertainty or self.save_probabilities or self.calibration is not None
        has_labels_only = window.interpolation == "linear" and not keeps_logits
        if plan.air_below is not None and has_labels_only:
            skipped = air_tiles(image.values[0], plan.air_below, window.lay_tiles(image.values.shape[1:]), rim=1)
        normalize_in_place(image.values, plan, scan.name)
        return image, skipped

    def predict_tiles(self, tiles: torch.Tensor) -> torch.Tensor:
        """Return the values (B, K, *tile) of tiles (B, C, *tile), averaged over test-time flips.

        Values are logits, or features where the head is applied after blending.
        """
        return mean_over_flips(self.backend, tiles, self.flips) if self.flips else self.backend(tiles)

    def workload(self, kept_slices: int = 0) -> Workload:
        """Return what estimates the memory of a prediction.

        Args:
            kept_slices: number of further scans of the same shape whose results are kept.
        """
        observers = Uncertainty.bytes_per_voxel() if self.uncertainty else 0
        if self.save_probabilities:
            observers += ProbabilityMaps.bytes_per_voxel(self.decision.num_channels)
        return Workload(
            self.image_plan, self.backend, self.predict_tiles, self.decision, observers, kept_slices,
            is_observed=bool(observers) or self.calibration is not None,
        )  # fmt: skip

    @property
    def can_predict_chunks(self) -> bool:
        """True if a Zarr image can be predicted without reading it as a whole.

        Only labels can be written chunk by chunk. Regions, slices and tiles of air need the whole image, and so do
        normalisations in several steps and probabilities that are interpolated.
        """
        has_maps, plan = self.uncertainty or self.save_probabilities, self.plan
        needs_whole = plan.air_below is not None or plan.restoring is not None or plan.padding is not None
        needs_whole = needs_whole or any(entry["scheme"] == "sequence" for entry in plan.normalization)
        return type(self) is Predictor and not has_maps and not needs_whole and plan.spatial_dims == 3

    @property
    def channel_names(self) -> list[str]:
        """Label or region of each channel of logits."""
        return self.plan.output_names[-self.decision.num_channels :]

    @property
    def map_names(self) -> list[str]:
        """Names of the maps that are written beside each segmentation."""
        return map_names(self.uncertainty, self.channel_names if self.save_probabilities else ())

    @property
    def identity(self) -> dict[str, Any]:
        """Part of a result's record that must be equal for an earlier result to be kept by a restarted run."""
        return {"plan_sha256": self.plan.digest, "weights_sha256": list(self.weights_sha256), **self._settings()}

    def _settings(self) -> dict[str, Any]:
        return {
            "backend": self.backend.name,
            "device": str(self.backend.device),
            "precision": self.backend.precision,
            "tile": list(self.window.tile),
            "overlap": self.window.overlap,
            "blending": self.window.blending,
            "interpolation": self.window.interpolation,
            "flips": list(self.flips),
            "temperature": None if self.calibration is None else self.calibration.temperature,
        }


def _is_sheared(image: PreparedImage, native: Grid) -> bool:
    """Return True if the two grids are related by a shear, which is restored by linear interpolation only."""
    return map_grids(image.affine, image.values.shape[1:], native.affine, native.shape) is None


def flip_axes(plan: Plan) -> tuple[int, ...]:
    """Return the spatial axes along which a model's input may be flipped.

    Raises:
        PlanError: the network was not trained to mirror any axis.
    """
    if not plan.mirror_axes:
        raise PlanError(
            f"{plan.name}: test-time flips are refused, because the plan's mirror_axes is empty and the network was "
            "not trained on mirrored images (flips lower the Dice of hippocampus crops from 0.90 to 0.29); use "
            "--tta none"
        )
    return tuple(sorted(set(plan.mirror_axes)))


def mean_over_flips(
    predict: Callable[[torch.Tensor], torch.Tensor], tiles: torch.Tensor, axes: Sequence[int]
) -> torch.Tensor:
    """Average the values over every combination of flips, each flipped back: Σ_f f⁻¹(predict(f(x))) / 2^axes.

    Args:
        predict: maps tiles (B, C, *tile) to values (B, K, *tile).
        tiles: (B, C, *tile).
        axes: spatial axes of the model grid, counted from 0.
    """
    flips = [[axis + 2 for axis in chosen] for count in range(len(axes) + 1) for chosen in combinations(axes, count)]
    total = predict(tiles).to(torch.float32, copy=True)
    for dims in flips[1:]:
        total += predict(tiles.flip(dims)).flip(dims)
    return total.div_(len(flips))
