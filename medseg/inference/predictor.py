"""From a scan to a segmentation on the scan's own grid."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, Literal

import torch

from medseg.inference.backend import Precision, TorchBackend
from medseg.inference.device import choose_device
from medseg.inference.preprocessing import preprocessing
from medseg.inference.provenance import ModelFacts, record
from medseg.inference.scan import Scan, load_scan
from medseg.inference.segmentation import Segmentation
from medseg.inference.streaming import Window, predict_labels
from medseg.plan import Plan
from medseg.transforms.label_decision import LabelDecision


class Predictor:
    """A network with everything around it: preprocessing, tiles, blending and the way back to the scan's grid.

    Args:
        network: logits (B, K, *tile) of tiles (B, C, *tile).
        plan: the values the network was trained with.
        device: "auto", "cpu", "cuda", "cuda:1", "mps" or a torch device.
        precision: "fp32" or "bf16".
        overlap: fraction of a tile shared with its neighbour; None takes the plan's.
        batch_size: tiles given to the network at once.
        interpolation: of logits on the way to the native grid, "linear" or "cubic".
        bundle: the bundle's name, for the record beside each result.
        weights_sha256: digests of the weights, for the record.
        on_tiles: called with (tiles done, tiles in all) of the current scan.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        plan: Plan,
        device: str | torch.device = "auto",
        *,
        precision: Precision = "fp32",
        overlap: float | None = None,
        batch_size: int = 1,
        interpolation: Literal["linear", "cubic"] = "linear",
        bundle: str = "",
        weights_sha256: Sequence[str] = (),
        on_tiles: Callable[[int, int], None] | None = None,
    ) -> None:
        self.plan = plan
        self.backend = TorchBackend(network, choose_device(device), precision)
        self.facts = ModelFacts(bundle, tuple(weights_sha256))
        self.window = Window(
            tuple(plan.tile), plan.overlap if overlap is None else overlap, plan.blending, batch_size, interpolation
        )
        self.decision = LabelDecision(plan.label_values, plan.activation)
        self.preprocess = preprocessing(plan)
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
        """
        started = perf_counter()
        scan = load_scan(source, self.plan)
        return self.predict_scan(scan, read_seconds=perf_counter() - started)

    def predict_scan(self, scan: Scan, read_seconds: float = 0.0) -> Segmentation:
        """Segment a scan that is already in memory."""
        started = perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            image = self.preprocess(scan.to_tensor())
        notes = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
        prepared = perf_counter()
        grid = scan.reference.grid
        labels = predict_labels(
            image.as_tensor(), image.affine, grid.affine, grid.shape, self.backend, self.decision, self.window,
            self.backend.head_weight, self.backend.head_bias, on_tiles=self.on_tiles,
        )  # fmt: skip
        seconds = {"read": read_seconds, "preprocess": prepared - started, "predict": perf_counter() - prepared}
        provenance = record(self.plan, self.facts, self._settings(), [v.name for v in scan.channels], seconds, notes)
        return Segmentation(labels.numpy(), dict(self.plan.labels), scan.reference, provenance)

    def identity(self, sources: Sequence[str]) -> dict[str, Any]:
        """The part of a result's record that must be equal for the result to be taken as finished."""
        return {
            "plan_sha256": self.plan.digest,
            "weights_sha256": list(self.facts.weights_sha256),
            "input": list(sources),
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
        }
