"""Making an input on which a network predicts enough of every label."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from math import prod

import torch
from torch import nn
from torch.nn import functional as F

from medseg.inference.golden_agreement import ExactResult
from medseg.plan import Plan

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
