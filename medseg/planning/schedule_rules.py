"""Rules about the training: batch, epochs, optimiser, loss and deformation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from medseg.bundle.train_config import BoundaryWeights, TrainingSettings
from medseg.plan import Plan
from medseg.planning.data_fingerprint import DataFingerprint
from medseg.planning.data_rules import ANISOTROPY, MICROSCOPY, median_shape, target_spacing
from medseg.planning.planned_training import MIN_BATCH, TIME_FOR_STEPS, Costs, Decisions, Wishes

MOST_OF_DATA = 0.05  # of the data set's voxels in one batch (nnU-Net's value)
MOST_STEPS = 250_000  # nnU-Net's 1000 epochs of 250 steps
FEW_STEPS = 1000
VALIDATIONS = 10
STEPS_PER_CHECKPOINT = 100


class Deformation(NamedTuple):
    """Strength of the random deformation: its probability, the largest rotation in rad, and the range of scales."""

    probability: float
    rotation: float
    scale: tuple[float, float]


# A network that sees each case more often than this gets the stronger deformation. On the hippocampus data the weak one
# is better for 30 passes over the cases, but with it the Dice fell from the 25th to the 50th.
PASSES_WITH_WEAK_DEFORMATION = 30
WEAK_DEFORMATION = Deformation(0.3, 0.2, (0.9, 1.1))
STRONG_DEFORMATION = Deformation(0.7, 0.35, (0.8, 1.25))


def batch_size(
    data: DataFingerprint, plan: Plan, shape: Sequence[float], wishes: Wishes, costs: Costs, decisions: Decisions
) -> int:
    """Return the number of patches per step; `shape` is the median size of the images at the plan's voxel size."""
    if wishes.device == "cpu":
        decisions.add("batch", MIN_BATCH, "On a CPU more steps with small batches learn faster than fewer large ones.")
        return MIN_BATCH
    slices = 1.0
    if plan.slice_axis is not None:
        slices = median_shape(data, target_spacing(data))["RAS".index(plan.slice_axis)]
    voxels = math.prod(shape) * slices * data.num_cases
    most = max(MIN_BATCH, round(voxels * MOST_OF_DATA / math.prod(plan.patch)))
    batch = MIN_BATCH
    while batch < most and costs.training_bytes(plan, batch + 1) <= wishes.memory:
        batch += 1
    reason = (
        f"More would be over {MOST_OF_DATA:.0%} of the data set's voxels in one step."
        if batch == most
        else "It is the largest batch that fits into the memory."
    )
    decisions.add("batch", batch, reason)
    return batch


def training_settings(
    data: DataFingerprint,
    plan: Plan,
    batch: int,
    num_training_cases: int,
    weights: BoundaryWeights | None,
    is_mapped: bool,
    wishes: Wishes,
    costs: Costs,
    decisions: Decisions,
) -> TrainingSettings:
    """Return the values of train.json: epochs that fill the time, optimiser, loss and deformation.

    Args:
        data: fingerprint of the data set.
        plan: the finished plan.
        batch: patches per step.
        num_training_cases: cases of one epoch.
        weights: between instances; None for none.
        is_mapped: True if prepared cases are kept in mapped files.
        wishes: time and form of the network.
        costs: what a step takes.
        decisions: gets the reasons.
    """
    seconds = costs.step_seconds(plan, batch)
    steps_per_epoch = max(1, math.ceil(num_training_cases / batch))
    available = wishes.hours * 3600 * TIME_FOR_STEPS / seconds
    is_enough = available >= MOST_STEPS
    steps = int(min(MOST_STEPS, available))
    epochs = max(1, steps // steps_per_epoch)
    steps = epochs * steps_per_epoch
    if steps < FEW_STEPS:
        decisions.warn(
            f"{wishes.hours:g} hours allow only {steps} steps of about {seconds:.2g} s; the network will not "
            "be trained well; raise --hours, or use a GPU"
        )
    decisions.add(
        "epochs", f"{epochs} of {steps_per_epoch} steps",
        f"A step takes about {seconds:.2g} s here, so {steps:,} steps fill {TIME_FOR_STEPS:.0%} of "
        f"{wishes.hours:g} hours; the rest is for loading and validation."
        if not is_enough
        else f"As in nnU-Net, {MOST_STEPS:,} steps are enough.",
    )  # fmt: skip
    is_nested = wishes.network == "unetplusplus"
    rate = {"unetr": 0.001, "unetplusplus": 0.003}.get(wishes.network, 0.002)
    decisions.add(
        "optimiser", f"AdamW, {rate:g}, weight decay 0.01, gradient clipped at 12, weights averaged",
        "These settings gave the best Dice per hour on the hippocampus data.",
    )  # fmt: skip
    terms = "one sigmoid per region: " if plan.label_regions else ""
    terms += "Dice over the batch + cross entropy" + (", at every depth" if is_nested else "")
    decisions.add(
        "loss", terms, "With the Dice of the whole batch, a label that one patch lacks does not rule the gradient."
    )  # fmt: skip
    is_short = epochs <= PASSES_WITH_WEAK_DEFORMATION
    deformation = WEAK_DEFORMATION if is_short else STRONG_DEFORMATION
    rotation = _rotation(plan, deformation.rotation)
    where = "" if isinstance(rotation, float) else "; coarse slices turn in their plane only"
    decisions.add(
        "deformation",
        f"probability {deformation.probability:g}, rotation up to {deformation.rotation:g} rad, scale "
        f"{deformation.scale[0]:g} to {deformation.scale[1]:g}",
        f"{'Weak' if is_short else 'Strong'} deformations gave the better Dice on the hippocampus data with about "
        f"{epochs} passes over the cases{where}.",
    )
    return TrainingSettings(
        max_epochs=epochs,
        batch_size=batch,
        learning_rate=rate,
        val_interval=max(1, epochs // VALIDATIONS),
        checkpoint_interval=max(1, round(STEPS_PER_CHECKPOINT / steps_per_epoch)),
        average_decay=round(min(0.998, max(0.9, 1 - 5 / steps)), 4),
        max_grad_norm=12.0,
        batch_dice=True,
        has_deep_supervision=is_nested,
        deformation_prob=deformation.probability,
        rotation_range=rotation,
        scale_range=deformation.scale,
        flip_axes=tuple(plan.mirror_axes),
        has_low_resolution=not all(modality in MICROSCOPY for _, modality in data.channels),
        boundary_weights=weights,
        is_mapped=is_mapped,
    )


def _rotation(plan: Plan, largest: float) -> float | tuple[float, ...]:
    """Return the largest rotation; about the coarse axis alone if its voxels are far larger than the others."""
    if plan.spatial_dims == 2 or plan.spacing is None or max(plan.spacing) <= ANISOTROPY * min(plan.spacing):
        return largest
    coarse = max(range(3), key=lambda axis: (plan.spacing or ())[axis])
    return tuple(largest if axis == coarse else 0.0 for axis in range(3))
