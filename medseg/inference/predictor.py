"""From a scan to a segmentation on the scan's own grid."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import torch

from medseg.inference.device import choose_device
from medseg.inference.preprocessing import preprocessing
from medseg.inference.provenance import ModelFacts, record
from medseg.inference.scan import Scan, load_scan
from medseg.inference.segmentation import Segmentation
from medseg.inference.sliding_window import SlidingWindow
from medseg.plan import Plan
from medseg.transforms.restore import RestoreToNative


class Predictor:
    """A network with everything around it: preprocessing, tiles, blending and the way back to the scan's grid.

    Args:
        network: logits (B, K, *tile) of tiles (B, C, *tile).
        plan: the values the network was trained with.
        device: "auto", "cpu", "cuda", "cuda:1", "mps" or a torch device.
        overlap: fraction of a tile shared with its neighbour; None takes the plan's.
        batch_size: tiles given to the network at once.
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
        overlap: float | None = None,
        batch_size: int = 1,
        bundle: str = "",
        weights_sha256: Sequence[str] = (),
        on_tiles: Callable[[int, int], None] | None = None,
    ) -> None:
        self.plan = plan
        self.device = choose_device(device)
        self.network = network.to(self.device).eval()
        self.facts = ModelFacts(bundle, tuple(weights_sha256))
        self.overlap = plan.overlap if overlap is None else overlap
        self.inferer = SlidingWindow(
            plan.tile, self.overlap, plan.blending, batch_size, sw_device=self.device, device="cpu"
        )
        self.preprocess = preprocessing(plan)
        self.restore = RestoreToNative(plan.label_values, plan.activation)
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
        with torch.inference_mode():
            logits = self.inferer(image[None], self.network)[0]
            predicted = perf_counter()
            labels = self.restore(logits, image.meta)
        seconds = {
            "read": read_seconds,
            "preprocess": prepared - started,
            "predict": predicted - prepared,
            "restore": perf_counter() - predicted,
        }
        provenance = record(self.plan, self.facts, self._settings(), [v.name for v in scan.channels], seconds, notes)
        return Segmentation(labels[0].numpy(), dict(self.plan.labels), scan.reference, provenance)

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
            "backend": "torch",
            "device": str(self.device),
            "precision": "fp32",
            "tile": list(self.plan.tile),
            "overlap": self.overlap,
            "blending": self.plan.blending,
            "interpolation": "linear",
        }
