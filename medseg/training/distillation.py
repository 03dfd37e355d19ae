"""Train a network on the averaged probabilities of trained networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F

from medseg.errors import NetworkError
from medseg.networks.precision import Precision, autocast


class Teacher:
    """Average the probabilities of trained networks, and compare a network that is trained with them.

    The loss of a step becomes (1 − λ)·L + λ·D, where L is the loss against the labels and D the cross entropy of the
    teachers' mean probabilities q and the network's probabilities p, averaged over samples and voxels: −Σ_k q_k log p_k
    (Hinton et al. 2015, arXiv:1503.02531, with temperature 1). With a sigmoid, D is the sum of the binary cross
    entropies of the channels. The teachers see the augmented images, so that their probabilities fit the augmented
    labels.

    Args:
        networks: trained networks that map the same input to logits of the same channels. They are moved to the device
            of the training at the first step, and do not become part of its checkpoints.
        weight: λ in [0, 1].
        activation: "softmax" or "sigmoid", as the plan says.

    Raises:
        ValueError: the weight is outside [0, 1].
        NetworkError: there is no network; (call) the shape of the logits differs.
    """

    def __init__(
        self,
        networks: Sequence[torch.nn.Module],
        weight: float = 0.5,
        activation: Literal["softmax", "sigmoid"] = "softmax",
    ) -> None:
        if not 0 <= weight <= 1:
            raise ValueError(f"weight must be in [0, 1], found {weight!r}")
        if not networks:
            raise NetworkError("a teacher needs at least one trained network; found none, give bundles with --teachers")
        self.networks = [network.eval().requires_grad_(False) for network in networks]
        self.weight = weight
        self.activation = activation

    @torch.no_grad()
    def probabilities(self, image: torch.Tensor, precision: Precision = "fp32") -> torch.Tensor:
        """Return the mean probabilities (B, K, …) of the networks for images (B, C, …), in fp32."""
        activate = torch.sigmoid if self.activation == "sigmoid" else lambda logits: logits.softmax(1)
        total: torch.Tensor | None = None
        for network in self.networks:
            with autocast(image.device, precision):
                logits = network.to(image.device)(image)
            values = activate(logits.float())
            total = values if total is None else total.add_(values)
        assert total is not None  # there is at least one network
        return total.div_(len(self.networks))

    def mix(
        self,
        loss: torch.Tensor,
        logits: torch.Tensor | Sequence[torch.Tensor],
        image: torch.Tensor,
        precision: Precision = "fp32",
    ) -> torch.Tensor:
        """Mix the loss against the labels with the loss against the teachers.

        Args:
            loss: L, a scalar.
            logits: (B, K, …) of the network that is trained. Of several outputs (deep supervision) the first, at full
                resolution, is compared.
            image: (B, C, …), the input of the network.
            precision: of the teachers' convolutions.

        Returns:
            (1 − λ)·L + λ·D, a scalar.
        """
        own = (logits if isinstance(logits, torch.Tensor) else logits[0]).float()
        expected = self.probabilities(image, precision)
        if expected.shape != own.shape:
            raise NetworkError(
                f"the teachers' logits have the shape {tuple(expected.shape)}, those of the network that is trained "
                f"{tuple(own.shape)}; a teacher needs the same channels"
            )
        with torch.autocast(own.device.type, enabled=False):
            if self.activation == "softmax":
                distance = F.cross_entropy(own, expected)
            else:
                distance = F.binary_cross_entropy_with_logits(own, expected, reduction="none").sum(1).mean()
        return torch.lerp(loss.float(), distance, self.weight)
