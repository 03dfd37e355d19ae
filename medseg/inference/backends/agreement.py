"""Whether a faster computation may stand in for the exact one: the rule behind a bundle's golden sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

# Logits kept of an exact result: enough to see a drift anywhere, few enough to travel with the weights.
MAX_VOXELS, MAX_LOGITS = 4096, 100_000


@dataclass(frozen=True)
class Tolerance:
    """What another result may differ by.

    Args:
        label_agreement: least share of voxels with the same label.
        dice_loss: most that a label's Dice with the exact labels may stay below 1, and so the most that its Dice with
            any reference is expected to move.
        voxels_a_label: least number of exactly predicted voxels of every label, so that the rule cannot pass on
            emptiness.
        logit_difference: most that any kept logit may differ by, as a share of the exact logits' standard deviation.
    """

    label_agreement: float = 0.995
    dice_loss: float = 0.002
    voxels_a_label: int = 500
    logit_difference: float = 0.25


# What fp32 on another machine or version may differ by: rounding, not arithmetic.
SAME_PRECISION = Tolerance(label_agreement=0.9995, dice_loss=0.002, voxels_a_label=0, logit_difference=0.01)


@dataclass(frozen=True, eq=False)
class ExactResult:
    """What is kept of a pass in fp32: every label and a digest of the logits.

    Args:
        labels: (*tile) index of each voxel's label in the plan's order.
        num_labels: how many labels there are, background included.
        activation: "softmax" or "sigmoid", which decides labels from logits.
        positions: (n,) flat indices of the voxels whose logits are kept.
        logits: (C, n) at these voxels.
        logits_std: standard deviation of all logits.
    """

    labels: np.ndarray
    num_labels: int
    activation: Literal["softmax", "sigmoid"]
    positions: np.ndarray
    logits: np.ndarray
    logits_std: float

    @classmethod
    def of(cls, logits: np.ndarray, activation: Literal["softmax", "sigmoid"] = "softmax") -> ExactResult:
        """Keep what is needed of logits (C, *tile): those of at most 4096 voxels, spread evenly."""
        channels, voxels = len(logits), logits[0].size
        kept = max(1, min(voxels, MAX_VOXELS, MAX_LOGITS // channels))
        positions = np.arange(kept, dtype=np.int64) * voxels // kept
        return cls(
            labels=decided(logits, activation),
            num_labels=channels + (activation == "sigmoid"),
            activation=activation,
            positions=positions,
            logits=logits.reshape(channels, -1)[:, positions].astype(np.float32),
            logits_std=float(logits.std(dtype=np.float64)),
        )

    @property
    def voxels_a_label(self) -> list[int]:
        """Voxels of each label, in the plan's order."""
        return np.bincount(self.labels.ravel(), minlength=self.num_labels).tolist()


def decided(logits: np.ndarray, activation: Literal["softmax", "sigmoid"]) -> np.ndarray:
    """Index of each voxel's label: that of the largest logit, or the last region whose logit is positive (0: none)."""
    if activation == "softmax":
        return logits.argmax(0).astype(np.uint16)
    numbers = np.arange(1, len(logits) + 1, dtype=np.uint16).reshape(-1, *[1] * (logits.ndim - 1))
    return np.where(logits > 0, numbers, np.uint16(0)).max(0)


def objection(exact: ExactResult, logits: np.ndarray, tolerance: Tolerance | None = None) -> str:
    """Why logits may not be used instead of the exact ones; "" where they may.

    Args:
        exact: the result in fp32.
        logits: (C, *tile) of the other way.
        tolerance: what is allowed.

    Returns:
        One line.
    """
    allowed = tolerance or Tolerance()
    expected = (len(exact.logits), *exact.labels.shape)
    if logits.shape != expected:
        return f"logits have shape {logits.shape}, expected {expected}"
    if not np.isfinite(logits).all():
        return "logits are not finite"
    emptiness = too_few_voxels(exact, allowed)
    if emptiness:
        return emptiness
    labels = decided(logits, exact.activation)
    for index in range(exact.num_labels):
        lost = 1 - _dice(exact.labels, labels, index)
        if lost > allowed.dice_loss:
            return f"Dice of label {index} falls by {lost:.4f}, more than {allowed.dice_loss}"
    agreement = float((exact.labels == labels).mean())
    if agreement < allowed.label_agreement:
        return f"labels agree on {agreement:.2%} of voxels, fewer than {allowed.label_agreement:.2%}"
    there = logits.reshape(len(logits), -1)[:, exact.positions]
    difference = float(np.abs(exact.logits - there).max() / max(exact.logits_std, 1e-12))
    if difference > allowed.logit_difference:
        return f"logits differ by up to {difference:.2f} standard deviations, more than {allowed.logit_difference}"
    return ""


def too_few_voxels(exact: ExactResult, tolerance: Tolerance | None = None) -> str:
    """Why a sample proves nothing: a label that it hardly holds; "" where it holds enough of each."""
    least = (tolerance or Tolerance()).voxels_a_label
    for index, count in enumerate(exact.voxels_a_label):
        if count < least:
            return f"the sample has {count} voxels of label {index}, fewer than {least}"
    return ""


def _dice(a: np.ndarray, b: np.ndarray, index: int) -> float:
    """2 |A ∩ B| / (|A| + |B|); 1 where both are empty."""
    in_a, in_b = a == index, b == index
    total = int(in_a.sum()) + int(in_b.sum())
    return 2 * int((in_a & in_b).sum()) / total if total else 1.0
