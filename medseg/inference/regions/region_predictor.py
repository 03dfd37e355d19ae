"""Predict a whole scan with a network that was trained on crops."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any

import torch
from monai.transforms import Orientation
from torch import nn

from medseg.errors import OptionError
from medseg.inference.inferers import SlidingWindowInferer
from medseg.inference.predictor import Predictor
from medseg.inference.preprocessing import AXIS_LABELS
from medseg.inference.regions.region_inferer import RegionInferer, RegionLogits
from medseg.inference.scan import Scan
from medseg.inference.segmentation import Segmentation, provenance_record
from medseg.inference.uncertainty import ProbabilityMaps, Uncertainty
from medseg.plan import Plan
from medseg.transforms.restore.label_decision import apply_head
from medseg.transforms.restore.native import restore_labels


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
        OptionError: max_ram is given; a memory limit is for bundles without regions.
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
        if options.get("max_ram") is not None:
            raise OptionError(
                f"max_ram cannot be used with {plan.name}, which finds regions in the scan; leave it out: a head of "
                "256×256×256 voxels takes about 1 GB"
            )
        super().__init__(network, plan, device, **options)
        window = SlidingWindowInferer(plan.tile, self.window.batch_size, self.window.overlap, self.window.blending)
        self.inferer = RegionInferer(window, plan, centers_mm=centers_mm)

    def _segment_scan(self, scan: Scan, read_seconds: float) -> Segmentation:
        started = perf_counter()
        grid, names = scan.reference.grid, self.channel_names
        image = Orientation(axcodes=self.plan.orientation, labels=AXIS_LABELS)(scan.to_tensor())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            found = self._predict_regions(image.as_tensor(), image.affine.numpy(), scan.name)
        predicted = perf_counter()
        channels = (self.decision.num_channels, self.plan.activation)
        uncertainty = Uncertainty(grid.shape, *channels) if self.uncertainty else None
        maps = ProbabilityMaps(grid.shape, *channels) if self.save_probabilities else None
        labels = restore_labels(
            found.logits, found.affine, grid.affine, grid.shape, self.decision,
            observers=[each for each in (uncertainty, maps) if each is not None],
        )  # fmt: skip
        seconds = {"read": read_seconds, "predict": predicted - started, "restore": perf_counter() - predicted}
        notes = [*scan.notes, *(str(w.message) for w in caught if issubclass(w.category, UserWarning))]
        settings = {**self._settings(), "backend_reason": self.backend_reason, "regions": _described(found)}
        return Segmentation(
            labels.numpy(), dict(self.plan.labels), scan.reference,
            provenance_record(self.plan, self.bundle, self.weights_sha256, settings, scan, seconds, notes),
            entropy=None if uncertainty is None else uncertainty.entropy,
            probabilities=None if maps is None else dict(zip(names, maps.maps, strict=True)),
            intervals_ml=None if uncertainty is None else uncertainty.intervals_ml(names, grid.voxel_volume_mm3),
        )  # fmt: skip

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
