"""From a scan to a segmentation on the scan's own grid."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, Literal

import torch
from monai.data import MetaTensor
from torch import nn

from medseg.errors import OptionError
from medseg.inference.backends.choice import GoldenCheck, choose_backend
from medseg.inference.backends.torch_backend import choose_device
from medseg.inference.memory import Workload, parse_bytes
from medseg.inference.observers import Certainty, ProbabilityMaps
from medseg.inference.preprocessing import model_image, normalize_in_place, preprocessing
from medseg.inference.saving import ModelFacts, record
from medseg.inference.scan import Scan, load_scan
from medseg.inference.segmentation import Segmentation, map_names
from medseg.inference.tiling.streaming import Window, is_sheared, predict_labels
from medseg.inference.tiling.tiles import air_tiles
from medseg.inference.tta import FlippedMean, flip_axes
from medseg.networks.precision import Precision
from medseg.plan import Plan
from medseg.transforms.restore.label_decision import LabelDecision

logger = logging.getLogger(__name__)


class Predictor:
    """A network with everything around it: preprocessing, tiles, blending and the way back to the scan's grid.

    Args:
        network: logits (B, K, *tile) of tiles (B, C, *tile); several are an ensemble (mean logits).
        plan: the values the network was trained with.
        device: "auto", "cpu", "cuda", "cuda:1", "mps" or a torch device.
        backend: "torch", "openvino" or "auto".
        precision: "fp32", "bf16", or "auto" (see `choose_backend`).
        overlap: fraction of a tile shared with its neighbour; None takes the plan's.
        batch_size: tiles given to the network at once.
        interpolation: of logits on the way to the native grid, "linear" or "cubic".
        tta: "flip" averages over flips along the plan's mirror_axes.
        max_ram: most memory the whole process may take, as "4GB" or bytes; refused before the work starts if it cannot
            be kept.
        save_probabilities: keep the probability of every class.
        uncertainty: keep an entropy map and an interval for each structure's volume.
        golden_check: gates low precision; see `choose_backend`.
        is_compiled: let torch.compile try, and keep it where a probe shows that it pays.
        bundle: the bundle's name, for the record beside each result.
        weights_sha256: digests of the weights, for the record.
        on_tiles: called with (tiles done, tiles in all) of the current scan.

    Raises:
        PlanError: flips are asked for and the network was never trained to mirror.
        OptionError: an option is none of those above.
        BackendError: the backend is not installed.
    """

    def __init__(
        self,
        network: nn.Module | Sequence[nn.Module],
        plan: Plan,
        device: str | torch.device = "auto",
        *,
        backend: Literal["auto", "torch", "openvino"] = "auto",
        precision: Precision | Literal["auto"] = "fp32",
        overlap: float | None = None,
        batch_size: int = 1,
        interpolation: Literal["linear", "cubic"] = "linear",
        tta: Literal["none", "flip"] = "none",
        max_ram: str | int | None = None,
        save_probabilities: bool = False,
        uncertainty: bool = False,
        golden_check: GoldenCheck | None = None,
        is_compiled: bool = False,
        bundle: str = "",
        weights_sha256: Sequence[str] = (),
        on_tiles: Callable[[int, int], None] | None = None,
    ) -> None:
        if tta not in ("none", "flip"):
            raise OptionError(f"tta must be none or flip, found {tta!r}")
        if interpolation not in ("linear", "cubic"):
            raise OptionError(f"interpolation must be linear or cubic, found {interpolation!r}")
        if overlap is not None and not 0 <= overlap < 1:
            raise OptionError(f"overlap must be at least 0 and below 1, found {overlap}")
        if batch_size < 1:
            raise OptionError(f"batch_size must be at least 1, found {batch_size}")
        self.plan = plan
        self.flips = flip_axes(plan) if tta == "flip" else ()
        networks = [network] if isinstance(network, nn.Module) else list(network)
        tiles = (batch_size, plan.in_channels, *plan.tile)
        self.backend, self.reason = choose_backend(
            networks, choose_device(device), tiles, backend, precision, golden_check, is_compiled=is_compiled
        )
        self.values = FlippedMean(self.backend, self.flips) if self.flips else self.backend
        self.window = Window(
            tuple(plan.tile), plan.overlap if overlap is None else overlap, plan.blending, batch_size, interpolation
        )
        self.decision = LabelDecision(plan.label_values, plan.activation)
        self.preprocess = preprocessing(plan)
        self.max_ram = None if max_ram is None else parse_bytes(max_ram)
        self.workload = Workload(
            plan, self.backend, self.values, self.decision,
            observer_bytes=int(uncertainty) + 2 * self.decision.num_channels * int(save_probabilities),
        )  # fmt: skip
        self.save_probabilities = save_probabilities
        self.uncertainty = uncertainty
        self.facts = ModelFacts(bundle, tuple(weights_sha256))
        self.on_tiles = on_tiles

    def predict(self, source: Any) -> Segmentation:
        """Segment one scan.

        Args:
            source: a path, a list of paths (one a channel), a nibabel or SimpleITK image, or (array, affine).

        Returns:
            Labels on the scan's own grid.

        Raises:
            VolumeError: the scan cannot be read, or is not what the plan takes.
            GeometryError: its channels lie on different grids.
            MemoryLimitError: max_ram cannot be kept.
        """
        return self._predict_source(source, self.plan)

    def _predict_source(self, source: Any, plan: Plan) -> Segmentation:
        started = perf_counter()
        scan = load_scan(source, plan)
        for note in scan.notes:
            logger.warning(note)
        return self.predict_scan(scan, read_seconds=perf_counter() - started)

    def predict_scan(self, scan: Scan, read_seconds: float = 0.0) -> Segmentation:
        """Segment a scan that is already in memory."""
        window = self.window if self.max_ram is None else self.workload.fit(scan, self.window, self.max_ram)
        started = perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            image, left_out = self._prepare(scan, window)
        notes = [*scan.notes]
        notes += [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
        prepared = perf_counter()
        grid = scan.reference.grid
        if window.interpolation == "cubic" and is_sheared(image, grid):
            notes.append(f"{scan.name}: its axes are not perpendicular, so it was restored by linear interpolation")
        channels = (self.decision.num_channels, self.plan.activation)
        certainty = Certainty(grid.shape, *channels) if self.uncertainty else None
        maps = ProbabilityMaps(grid.shape, *channels) if self.save_probabilities else None
        labels = predict_labels(
            image.as_tensor(), image.affine, grid.affine, grid.shape, self.values, self.decision, window,
            self.backend.head_weight, self.backend.head_bias,
            observers=[each for each in (certainty, maps) if each is not None], on_tiles=self.on_tiles,
            left_out=left_out,
        )  # fmt: skip
        seconds = {"read": read_seconds, "preprocess": prepared - started, "predict": perf_counter() - prepared}
        sources = [volume.name for volume in scan.channels]
        settings = {**self._settings(), "sums": window.carried, "tiles_left_out": len(left_out)}
        settings["backend_reason"] = self.reason
        provenance = record(self.plan, self.facts, settings, sources, scan.input_sha256, seconds, notes)
        names = self.channel_names
        return Segmentation(
            labels.numpy(), dict(self.plan.labels), scan.reference, provenance,
            entropy=None if certainty is None else certainty.entropy,
            probabilities=None if maps is None else dict(zip(names, maps.maps, strict=True)),
            intervals_ml=None if certainty is None else certainty.intervals_ml(names, grid.voxel_volume_mm3),
        )  # fmt: skip

    def _prepare(self, scan: Scan, window: Window) -> tuple[MetaTensor, frozenset[tuple[int, ...]]]:
        """The network's input, and the tiles of it that hold nothing but air."""
        image = model_image(scan, self.plan)
        if image is None:
            return self.preprocess(scan.to_tensor()), frozenset()
        left_out: frozenset[tuple[int, ...]] = frozenset()
        below = self.plan.air_below
        # Between probabilities of background and cubic overshoots nothing can be said of tiles that were not predicted.
        if below is not None and window.interpolation == "linear" and not (self.uncertainty or self.save_probabilities):
            left_out = air_tiles(image[0].as_tensor(), below, window.over(image.shape[1:]), rim=1)
        return normalize_in_place(image, self.plan), left_out

    @property
    def channel_names(self) -> list[str]:
        """Label or region of each channel of logits."""
        return self.plan.label_names[len(self.plan.labels) - self.decision.num_channels :]

    @property
    def maps(self) -> list[str]:
        """Names of the maps that are written beside each segmentation."""
        return map_names(self.uncertainty, self.channel_names if self.save_probabilities else ())

    @property
    def identity(self) -> dict[str, Any]:
        """The part of a result's record that, beside its input, must be equal for it to be taken as finished.

        Without a memory limit that includes sums in full precision. Under one, a result whose sums were rounded to fit
        is as good as the limit promises, and one with exact sums is better.
        """
        exact = {"sums": self.window.carried} if self.max_ram is None else {}
        return {
            **exact,
            "plan_sha256": self.plan.digest,
            "weights_sha256": list(self.facts.weights_sha256),
            **self._settings(),
        }

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
        }
