"""The learning rate's course over a training."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class PolynomialWarmUp(LambdaLR):
    """Linear warm-up, then the polynomial decay nnU-Net and DeepLab use: lr · (1 − t / T)^power.

    Args:
        optimizer: its learning rate is the peak.
        total: T, the number of scheduler steps of the whole training.
        warm_up: number of steps from 1 / warm_up of the peak to the peak.
        power: 0.9 as in Chen et al. 2017 (arXiv:1606.00915).
    """

    def __init__(self, optimizer: Optimizer, total: int, warm_up: int = 0, power: float = 0.9) -> None:
        if total < 1 or not 0 <= warm_up <= total:
            raise ValueError(f"need 0 ≤ warm_up ≤ total and total ≥ 1, found warm_up={warm_up}, total={total}")

        def factor(step: int) -> float:
            if step < warm_up:
                return (step + 1) / (warm_up + 1)
            return max(0.0, 1 - step / total) ** power

        super().__init__(optimizer, factor)
