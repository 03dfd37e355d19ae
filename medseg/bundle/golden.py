"""The golden sample of a bundle: a generated input, and what its network makes of it in fp32.

It tells whether the weights still mean what they meant (`medseg bundle verify`), and whether a faster, less precise
computation may stand in for fp32 (`medseg.inference.backends.choice`). It lies beside the weights as plain arrays.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from medseg import weights
from medseg.bundle.folder import BundleFolder
from medseg.errors import BundleError, one_line
from medseg.inference.backends.agreement import ExactResult, Tolerance, objection, too_few_voxels
from medseg.inference.backends.torch_backend import Backend
from medseg.plan import Plan
from medseg.transforms.restore.label_decision import apply_head
from medseg.versions import software_versions
from medseg.volumes import files

# Values of the lattice behind the input: a few hundred kilobytes in half precision.
MAX_LATTICE = 150_000
# Twice what the rule asks for.
ENOUGH_VOXELS = 1000
# Mean loss at which structures are about as distinct as those of real scans.
DISTINCT = 0.3
MAX_STEPS, RATE, SEED = 24, 0.1, 0
# Least share of the tile that is not background; small tiles get more, so that every label has enough.
FOREGROUND_SHARE = 0.15


def expand(lattice: torch.Tensor, tile: Sequence[int]) -> torch.Tensor:
    """The input (1, C, *tile) behind a lattice (C, *coarse), by linear interpolation."""
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(tile)]
    return F.interpolate(lattice[None].float(), tuple(tile), mode=mode, align_corners=False)


def golden_lattice(network: nn.Module, plan: Plan, seed: int = SEED) -> torch.Tensor:
    """A lattice whose expansion holds enough of every label, as far as the network can be brought to predict them.

    It begins as noise, and gradient descent moves it until the network sees generated blobs of every label in it. The
    network's weights are not changed.

    Args:
        network: on the CPU, in eval mode.
        plan: channels, tile, labels and activation.
        seed: of noise and blobs.

    Returns:
        (C, *coarse) half precision; its expansion has mean 0 and standard deviation 1.
    """
    generator = torch.Generator().manual_seed(seed)
    tile = tuple(plan.tile)
    target = _blobs(len(plan.labels), tile, generator)
    lattice = torch.randn(plan.in_channels, *_coarse_shape(plan.in_channels, tile), generator=generator)
    best, merit = lattice, (-1, 0.0)
    with torch.enable_grad():
        lattice.requires_grad_()
        optimizer = torch.optim.Adam([lattice], lr=RATE)
        for _ in range(MAX_STEPS + 1):
            given = _standardized(lattice, tile)
            logits = network(expand(given, tile))
            loss = _distance(logits, target, plan)
            fewest = min(ExactResult.of(logits.detach()[0].numpy(), plan.activation).voxels_a_label)
            found = min(fewest, ENOUGH_VOXELS), -loss.item()
            if found > merit:
                best, merit = given.detach(), found
            if fewest >= ENOUGH_VOXELS and loss.item() <= DISTINCT:
                break
            lattice.grad = torch.autograd.grad(loss, [lattice])[0]  # not backward(): the weights keep no gradients
            optimizer.step()
    return best.half()


def _standardized(lattice: torch.Tensor, tile: Sequence[int]) -> torch.Tensor:
    """The lattice, scaled so that its expansion has mean 0 and standard deviation 1 (interpolation is linear)."""
    values = expand(lattice, tile)
    return (lattice - values.mean()) / values.std()


def _coarse_shape(channels: int, tile: Sequence[int]) -> tuple[int, ...]:
    for factor in count(2):
        shape = tuple(max(2, -(-n // factor)) for n in tile)
        if channels * prod(shape) <= MAX_LATTICE or set(shape) == {2}:
            return shape
    raise AssertionError  # count() does not end


def _blobs(num_labels: int, tile: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Label indices (1, *tile): smooth random regions; what is not background is shared about equally."""
    labels = num_labels - 1
    foreground = max(FOREGROUND_SHARE, min(2 * ENOUGH_VOXELS * labels / prod(tile), labels / num_labels))
    waves = torch.randn(labels, *(max(4, -(-n // 12)) for n in tile), generator=generator)
    fields = expand(waves, tile)[0]
    axes = tuple(range(1, fields.ndim))
    fields = (fields - fields.mean(axes, keepdim=True)) / fields.std(axes, keepdim=True)
    strongest, winner = fields.max(0)
    ordered = strongest.flatten().sort().values
    threshold = ordered[int((1 - foreground) * (len(ordered) - 1))]
    return torch.where(strongest > threshold, winner + 1, 0)[None]


def _distance(logits: torch.Tensor, target: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Cross entropy; with regions, those of later labels lie within those of earlier ones."""
    if plan.activation == "softmax":
        return F.cross_entropy(logits, target)
    wanted = [target >= channel + 1 for channel in range(logits.shape[1])]
    return F.binary_cross_entropy_with_logits(logits, torch.stack(wanted, 1).to(logits.dtype))


GOLDEN = "models/golden.npz"
# A sample is far smaller; a file that claims more is not read.
MAX_BYTES = 64 * 1024**2


@dataclass(frozen=True, eq=False)
class GoldenSample:
    """A generated input and its result in fp32.

    Args:
        lattice: (C, *coarse) half precision; the input is its linear interpolation to a tile.
        exact: what the network made of the input.
        weights_sha256: digest of the weights it was made with.
        made: when, and with which versions.
    """

    lattice: np.ndarray
    exact: ExactResult
    weights_sha256: str
    made: dict[str, object]

    @property
    def image(self) -> torch.Tensor:
        """(1, C, *tile), as the network takes it."""
        return expand(torch.from_numpy(self.lattice), self.exact.labels.shape)

    def objection_to(self, backend: Backend, tolerance: Tolerance | None = None) -> str:
        """Why a backend's result may not stand in for fp32; "" where it may."""
        values = backend(self.image)[0]
        if backend.head_weight is not None:
            values = apply_head(values.float(), backend.head_weight, backend.head_bias)
        return objection(self.exact, values.float().cpu().numpy(), tolerance)


def make_golden_sample(network: nn.Module, plan: Plan, weights_sha256: str) -> GoldenSample:
    """Generate an input for a network and keep what fp32 makes of it.

    Args:
        network: on the CPU, in eval mode, with the weights of that digest.
        plan: its plan.
        weights_sha256: digest of the weights.
    """
    lattice = golden_lattice(network, plan)
    with torch.inference_mode():
        logits = network(expand(lattice, plan.tile))[0].float().numpy()
    made: dict[str, object] = {
        "versions": software_versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return GoldenSample(lattice.numpy(), ExactResult.of(logits, plan.activation), weights_sha256, made)


def write_golden_sample(bundle: str | Path) -> str:
    """Make the golden sample of a bundle's promoted weights and write it beside them.

    Returns:
        One line that says what it holds.

    Raises:
        BundleError, WeightsError: the bundle or its weights cannot be used.
    """
    folder = BundleFolder(Path(bundle))
    file, digest = folder.checked_weights()
    network = folder.plan.create_network()
    weights.load_into(network, file)
    sample = make_golden_sample(network.eval(), folder.plan, digest)
    save_golden_sample(folder, sample)
    return describe(sample, folder.plan)


def save_golden_sample(folder: BundleFolder, sample: GoldenSample) -> None:
    """Write the sample, whole or not at all."""
    exact = sample.exact
    facts = {
        "schema_version": 1,
        "weights_sha256": sample.weights_sha256,
        "activation": exact.activation,
        "num_labels": exact.num_labels,
        "logits_std": exact.logits_std,
        "voxels_a_label": exact.voxels_a_label,
        **sample.made,
    }
    content = io.BytesIO()
    np.savez_compressed(
        content, lattice=sample.lattice, labels=exact.labels, positions=exact.positions,
        logits=exact.logits, facts=np.array(json.dumps(facts)),
    )  # fmt: skip
    with files.replacing(folder.path / GOLDEN) as temporary:
        temporary.write_bytes(content.getvalue())


def read_golden_sample(folder: BundleFolder) -> GoldenSample | None:
    """The bundle's golden sample; None where it has none.

    Raises:
        BundleError: the file is damaged, or not of this bundle's plan.
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
            facts = json.loads(str(arrays["facts"]))
            exact = ExactResult(
                arrays["labels"], int(facts["num_labels"]), facts["activation"], arrays["positions"],
                arrays["logits"], float(facts["logits_std"]),
            )  # fmt: skip
            made = {name: facts[name] for name in ("versions", "created")}
            sample = GoldenSample(arrays["lattice"], exact, str(facts["weights_sha256"]), made)
        _check(sample, plan)
    except (OSError, EOFError, ValueError, LookupError, TypeError, zipfile.BadZipFile) as error:
        reason = one_line(error)
        raise BundleError(
            f"{path}: is not a golden sample of this bundle ({reason}); promote the weights again"
        ) from None
    return sample


def describe(sample: GoldenSample, plan: Plan) -> str:
    """One line: voxels of each label, and whether they are enough to allow low precision."""
    counts = ", ".join(f"{n} {name}" for name, n in zip(plan.label_names, sample.exact.voxels_a_label, strict=True))
    few = too_few_voxels(sample.exact)
    return f"{counts} voxels" + (f"; {few}, so low precision is refused" if few else "")


def _check(sample: GoldenSample, plan: Plan) -> None:
    exact, tile = sample.exact, tuple(plan.tile)
    found = (exact.labels.shape, exact.num_labels, exact.activation, len(exact.logits), sample.lattice.shape[0])
    wanted = (tile, len(plan.labels), plan.activation, plan.out_channels, plan.in_channels)
    if found != wanted:
        raise ValueError(f"tile, labels, activation and channels are {found}, the plan's {wanted}")
    if sample.lattice.ndim != len(tile) + 1 or not np.isfinite(sample.lattice).all() or exact.labels.dtype != np.uint16:
        raise ValueError("its input is not finite, or its arrays are of other types")
    if exact.logits.shape[1:] != exact.positions.shape or exact.positions.ndim != 1 or not len(exact.positions):
        raise ValueError("its logits have no positions")
    if exact.positions.min() < 0 or exact.positions.max() >= exact.labels.size:
        raise ValueError("its logits lie outside the tile")
