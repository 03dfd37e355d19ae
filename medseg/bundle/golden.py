"""The golden sample of a bundle: the fp32 logits of its network for a fixed generated input.

The sample shows whether the weights still give the results they gave at promotion (`medseg bundle verify`), and whether
a computation of lower precision may replace fp32 (`medseg.inference.backends.choice`). It lies beside the weights.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import prod
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from medseg.bundle.folder import BundleFolder
from medseg.errors import BundleError, first_line
from medseg.inference.backends.torch_backend import Backend
from medseg.plan import Plan
from medseg.transforms.restore.label_decision import apply_head
from medseg.versions import software_versions

GOLDEN = "models/golden.npz"
SCHEMA_VERSION = 2
# A sample is far smaller; a file that claims to hold more is not read.
MAX_BYTES = 64 * 1024**2
# Logits to keep: enough to detect a change anywhere in the tile, few enough to travel with the weights.
MAX_VOXELS, MAX_LOGITS = 4096, 100_000
# Coarse steps of the noise in voxels, and their weights: large structures with fine ones on them.
NOISE = {16: 1.0, 8: 1.0, 4: 0.7, 2: 0.3}


@dataclass(frozen=True)
class Tolerance:
    """Differences from the fp32 logits that are allowed.

    Args:
        logits: root mean square of the difference, as a share of the logits' standard deviation.
        labels: share of voxels that may have another label.
    """

    logits: float = 0.01
    labels: float = 0.005


# bf16 differs by 0.003 to 0.006 of a standard deviation and on 0 to 0.002 of the voxels in the shipped bundles; a
# class bias that is wrong by 0.2 differs by 0.014 to 0.05.
LOW_PRECISION = Tolerance()
# fp32 on another machine or with another version differs by rounding only.
SAME_PRECISION = Tolerance(logits=0.001, labels=0.001)


@dataclass(frozen=True, eq=False)
class GoldenSample:
    """The logits of a network for the generated input of its plan.

    Args:
        logits: (C, n) fp32 logits at n voxels, spread evenly over the tile.
        tile: size of the input in voxels.
        in_channels: channels of the input.
        activation: "softmax" or "sigmoid", which decides how labels follow from logits.
        weights_sha256: digest of the weights.
        provenance: versions and time of creation.
    """

    logits: np.ndarray
    tile: tuple[int, ...]
    in_channels: int
    activation: Literal["softmax", "sigmoid"]
    weights_sha256: str
    provenance: dict[str, object]

    @property
    def image(self) -> torch.Tensor:
        """The input (1, C, *tile), as the network takes it."""
        return golden_input(self.in_channels, self.tile)

    @property
    def voxels_per_label(self) -> list[int]:
        """Number of kept voxels of each label, in the plan's order."""
        num_labels = len(self.logits) + (self.activation == "sigmoid")
        return np.bincount(decide_labels(self.logits, self.activation), minlength=num_labels).tolist()

    def objection_to(self, backend: Backend, tolerance: Tolerance = LOW_PRECISION) -> str:
        """Return why the results of a backend may not replace those in fp32, in one line; "" if they may."""
        logits, expected = self.logits_of(backend), (len(self.logits), *self.tile)
        if logits.shape != expected:
            return f"logits have the shape {logits.shape}; expected {expected}"
        return self.objection(_kept(logits), tolerance)

    def difference_of(self, backend: Backend) -> Tolerance:
        """Return by how much a backend's logits and labels differ from the sample's.

        Raises:
            ValueError: its logits are not finite.
        """
        logits = _kept(self.logits_of(backend))
        if not np.isfinite(logits).all():
            raise ValueError("logits are not finite")
        return self._difference(logits)

    def logits_of(self, backend: Backend) -> np.ndarray:
        """Return the logits (C, *tile) of a backend for the sample's input."""
        values = backend(self.image)[0].float()
        if backend.head_weight is not None:
            values = apply_head(values, backend.head_weight, backend.head_bias)
        return values.cpu().numpy()

    def objection(self, logits: np.ndarray, tolerance: Tolerance = LOW_PRECISION) -> str:
        """Return why logits (C, n) at the same voxels may not replace the sample's; "" if they may."""
        if not np.isfinite(logits).all():
            return "logits are not finite"
        if not self.logits.std():
            return "the sample's logits are all equal, so it cannot show a difference"
        found = self._difference(logits)
        if found.logits > tolerance.logits:
            return f"logits differ by {found.logits:.4f} standard deviations, more than {tolerance.logits:.4g}"
        if found.labels > tolerance.labels:
            return f"labels differ on {found.labels:.2%} of the voxels, more than {tolerance.labels:.2%}"
        return ""

    def _difference(self, logits: np.ndarray) -> Tolerance:
        deviation = float(self.logits.std(dtype=np.float64))
        difference = float(np.sqrt(np.square(logits - self.logits, dtype=np.float64).mean())) / deviation
        labels = decide_labels(logits, self.activation), decide_labels(self.logits, self.activation)
        return Tolerance(difference, float((labels[0] != labels[1]).mean()))


def golden_input(in_channels: int, tile: tuple[int, ...]) -> torch.Tensor:
    """Return the generated input (1, in_channels, *tile): noise of several scales, with mean 0 and deviation 1.

    The noise is the same on every machine and with every version: NumPy guarantees the stream of RandomState.
    """
    random = np.random.RandomState(0)
    mode = {2: "bilinear", 3: "trilinear"}[len(tile)]
    image = torch.zeros(1, in_channels, *tile)
    for step, weight in NOISE.items():
        coarse = random.standard_normal((1, in_channels, *(max(2, -(-n // step)) for n in tile)))
        fine = F.interpolate(torch.from_numpy(coarse).float(), tile, mode=mode, align_corners=False)
        image += weight * fine / fine.std()
    return (image - image.mean()) / image.std()


def make_golden_sample(network: nn.Module, plan: Plan, weights_sha256: str) -> GoldenSample:
    """Run a network on the generated input of its plan and keep the result.

    Args:
        network: on the CPU, in eval mode, with the weights of that digest.
        plan: its plan.
        weights_sha256: digest of the weights.
    """
    tile = tuple(plan.tile)
    with torch.inference_mode():
        logits = network(golden_input(plan.in_channels, tile))[0].float().numpy()
    provenance: dict[str, object] = {
        "versions": software_versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return GoldenSample(_kept(logits), tile, plan.in_channels, plan.activation, weights_sha256, provenance)


def ensemble_sha256(digests: Sequence[str]) -> str:
    """Return the digest of several weights files by their digests; that of a single file is its own."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def decide_labels(logits: np.ndarray, activation: Literal["softmax", "sigmoid"]) -> np.ndarray:
    """Return the index of each voxel's label for logits (C, …): the largest, or the last region that is positive."""
    if activation == "softmax":
        return logits.argmax(0)
    numbers = np.arange(1, len(logits) + 1).reshape(-1, *[1] * (logits.ndim - 1))
    return np.where(logits > 0, numbers, 0).max(0)


def sample_as_bytes(sample: GoldenSample) -> bytes:
    """Return the content of a bundle's golden.npz."""
    facts = {
        "schema_version": SCHEMA_VERSION,
        "weights_sha256": sample.weights_sha256,
        "tile": sample.tile,
        "in_channels": sample.in_channels,
        "activation": sample.activation,
        **sample.provenance,
    }
    content = io.BytesIO()
    np.savez_compressed(content, logits=sample.logits, facts=np.array(json.dumps(facts)))
    return content.getvalue()


def read_golden_sample(folder: BundleFolder) -> GoldenSample | None:
    """Read a bundle's golden sample; None if it has none.

    Raises:
        BundleError: the file is damaged, or does not belong to this bundle's plan.
    """
    path, plan = folder.inside(GOLDEN), folder.plan
    if not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(member.file_size for member in archive.infolist())
        if claimed > MAX_BYTES:
            raise ValueError(f"claims {claimed:,} bytes")
        with np.load(path, allow_pickle=False) as arrays:
            facts, logits = json.loads(str(arrays["facts"])), arrays["logits"]
        if facts["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema_version {facts['schema_version']}, expected {SCHEMA_VERSION}")
        found = (tuple(facts["tile"]), facts["in_channels"], facts["activation"], logits.shape)
        shape = (plan.out_channels, _num_kept(plan.out_channels, prod(plan.tile)))
        expected = (tuple(plan.tile), plan.in_channels, plan.activation, shape)
        if found != expected:
            raise ValueError(f"tile, channels, activation and logits are {found}, expected {expected}")
        if logits.dtype != np.float32 or not np.isfinite(logits).all():
            raise ValueError("its logits are not finite numbers in fp32")
        provenance = {name: facts[name] for name in ("versions", "created")}
        digest = str(facts["weights_sha256"])
        return GoldenSample(logits, tuple(plan.tile), plan.in_channels, plan.activation, digest, provenance)
    except (OSError, EOFError, ValueError, LookupError, TypeError, RecursionError, zipfile.BadZipFile) as error:
        raise BundleError(
            f"{path}: not a golden sample of this bundle ({first_line(error)}); promote the weights again"
        ) from None


def describe(sample: GoldenSample, plan: Plan) -> str:
    """Return the number of kept voxels of each label, in one line."""
    counts = zip(sample.voxels_per_label, plan.output_names, strict=True)
    return f"{', '.join(f'{count} {name}' for count, name in counts)} voxels"


def _num_kept(channels: int, voxels: int) -> int:
    return max(1, min(voxels, MAX_VOXELS, MAX_LOGITS // channels))


def _kept(logits: np.ndarray) -> np.ndarray:
    """Return the logits (C, n) that a sample keeps, of logits (C, *tile)."""
    channels, voxels = len(logits), logits[0].size
    count = _num_kept(channels, voxels)
    positions = np.arange(count, dtype=np.int64) * voxels // count
    return logits.reshape(channels, -1)[:, positions].astype(np.float32)
