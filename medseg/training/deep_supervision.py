"""Deep supervision: logits of several decoder stages while training, from a network that returns one tensor."""

from __future__ import annotations

from typing import Any

import torch

from medseg.errors import NetworkError


class DeepSupervision(torch.nn.Module):
    """Wrap a network for training: `forward` returns the logits of each of its decoder stages, the network's own first.

    Every intermediate feature map gets a head, as in Zhou et al. 2018 (arXiv:1807.10165, Sec. 3.2) and nnU-Net (Isensee
    et al. 2021). Heads the network does not have itself are trained with it and thrown away afterwards: validate,
    average and promote `network`, put the wrapper into checkpoints. The loss is `medseg.losses.DeepSupervisionLoss`. In
    eval mode the wrapper returns the network's one tensor.

    Args:
        network: one of medseg's; the heads go to the device and memory format its first parameter is in.
        levels: how many stages are supervised, the network's own first; None = all.

    Raises:
        NetworkError: the network has no intermediate features, or fewer than `levels`.
    """

    def __init__(self, network: torch.nn.Module, levels: int | None = None) -> None:
        super().__init__()
        if not hasattr(network, "intermediate_heads"):
            raise NetworkError(
                f"deep supervision needs intermediate_features and intermediate_heads, found {type(network).__name__}"
            )
        medsegs: Any = network
        heads = medsegs.intermediate_heads()
        available = len(heads)
        if levels is not None and not 1 <= levels <= available:
            raise NetworkError(f"levels must be between 1 and {available} for this network, found {levels}")
        self.network: Any = network
        self.heads = heads[: levels or available].to(next(network.parameters()).device)

    def forward(self, x: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """Logits (B, C, …) of each supervised stage in training mode, of the network in eval mode."""
        if not self.training:
            return self.network(x)
        features = self.network.intermediate_features(x)
        return [head(feature) for head, feature in zip(self.heads, features, strict=False)]
