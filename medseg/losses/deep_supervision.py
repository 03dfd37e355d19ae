"""A weighted loss over the resolutions of a deeply supervised network."""

from collections.abc import Sequence

import monai.losses
import torch
import torch.nn.functional as F

from medseg.losses.target import plain


class DeepSupervisionLoss(monai.losses.DeepSupervisionLoss):
    """MONAI's `DeepSupervisionLoss` (same arguments, same level weights), which also hands voxel weights on.

    L = Σ_i λ_i loss(logits_i, label_i, weight_i), level 0 first, with labels and weights brought to each level's grid
    by nearest-neighbour sampling, so no label value is made up. One tensor of logits is level 0 alone with λ = 1.
    """

    def forward(
        self,
        input: torch.Tensor | Sequence[torch.Tensor],
        target: torch.Tensor,
        weight: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Loss of one (B, C, …) or of several levels against label and weight (B, 1, …) on level 0's grid."""
        levels = [input] if isinstance(input, torch.Tensor) else list(input)
        factors = [1.0] if isinstance(input, torch.Tensor) else self.get_weights(len(levels))
        terms = [
            factor * self.loss(logits, self._at(target, logits), None if weight is None else self._at(weight, logits))
            for factor, logits in zip(factors, levels, strict=True)
        ]
        return torch.stack(terms).sum()

    def _at(self, volume: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        volume = plain(volume)
        if volume.shape[2:] == logits.shape[2:]:
            return volume
        return F.interpolate(volume.float(), size=logits.shape[2:], mode=self.interp_mode)
