"""Whether a faster computation may stand in for the exact one: the rule behind a bundle's golden sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tolerance:
    """What a low-precision result may differ by.

    Args:
        label_agreement: least share of voxels with the same label.
        dice_loss: most that a label's Dice with the exact labels may stay below 1, and so the most that its Dice with
            any reference is expected to move.
        voxels_a_label: least number of exactly predicted voxels of every label, so that the rule cannot pass on
            emptiness.
        logit_difference: most that any logit may differ by, as a share of the exact logits' standard deviation.
    """

    label_agreement: float = 0.995
    dice_loss: float = 0.002
    voxels_a_label: int = 500
    logit_difference: float = 0.25


def objection(
    exact_logits: np.ndarray,
    logits: np.ndarray,
    tolerance: Tolerance | None = None,
    reference: np.ndarray | None = None,
) -> str:
    """Why the logits may not be used instead of the exact ones; "" where they may.

    Args:
        exact_logits: (C, …) computed in fp32.
        logits: (C, …) of the faster way.
        tolerance: what is allowed.
        reference: (…) channel indices that are the truth; the Dice of both ways with it is compared. By default the
            exact labels themselves are the truth.

    Returns:
        One line.
    """
    allowed = tolerance or Tolerance()
    if exact_logits.shape != logits.shape:
        return f"logits have shape {logits.shape}, expected {exact_logits.shape}"
    if not np.isfinite(logits).all():
        return "logits are not finite"
    exact, labels = exact_logits.argmax(0), logits.argmax(0)
    truth = exact if reference is None else reference
    for channel in range(len(logits)):
        count = int((exact == channel).sum())
        if count < allowed.voxels_a_label:
            return f"the sample has {count} voxels of channel {channel}, fewer than {allowed.voxels_a_label}"
        lost = _dice(exact, truth, channel) - _dice(labels, truth, channel)
        if lost > allowed.dice_loss:
            return f"Dice of channel {channel} falls by {lost:.4f}, more than {allowed.dice_loss}"
    agreement = float((exact == labels).mean())
    if agreement < allowed.label_agreement:
        return f"labels agree on {agreement:.2%} of voxels, fewer than {allowed.label_agreement:.2%}"
    difference = float(np.abs(exact_logits - logits).max() / max(float(exact_logits.std()), 1e-12))
    if difference > allowed.logit_difference:
        return f"logits differ by up to {difference:.2f} standard deviations, more than {allowed.logit_difference}"
    return ""


def _dice(labels: np.ndarray, truth: np.ndarray, channel: int) -> float:
    """2 |A ∩ B| / (|A| + |B|); 1 where both are empty."""
    a, b = labels == channel, truth == channel
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0
