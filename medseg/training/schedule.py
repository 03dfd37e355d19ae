"""Schedule the learning rate of a training."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class PolynomialWarmUp(LambdaLR):
    """Raise the learning rate linearly, then decay it as nnU-Net and DeepLab do: lr · (1 − t / T)^power.

    Args:
        optimizer: its learning rate is the peak.
        total: T, the number of scheduler steps of the whole training.
        warm_up: number of steps of the linear rise, which begins at 1 / (warm_up + 1) of the peak.
        power: 0.9 as in Chen et al. 2017 (arXiv:1606.00915).

    Raises:
        ValueError: there is no step, or more warm-up than steps.
    """

    def __init__(self, optimizer: Optimizer, total: int, warm_up: int = 0, power: float = 0.9) -> None:
        if total < 1:
            raise ValueError(f"a training needs at least one step, found {total}: raise max_epochs, or give it cases")
        if not 0 <= warm_up <= total:
            raise ValueError(f"need 0 ≤ warm_up ≤ total, found warm_up={warm_up}, total={total}")

        # pairs of a step and the total from then on
        self.changes: list[tuple[int, int]] = []

        def factor(step: int) -> float:
            if step < warm_up:
                return (step + 1) / (warm_up + 1)
            return max(0.0, 1 - self._progress(step, total)) ** power

        super().__init__(optimizer, factor)

    def end_at(self, total: int) -> None:
        """Change T during a training: from the present step on, progress grows evenly and is 1 at the new T."""
        self.changes.append((self.last_epoch, total))

    def _progress(self, step: int, total: int) -> float:
        """Return t / T in [0, 1]; after a change of T, the progress until then and the share of the rest."""
        begin, done = 0, 0.0
        for at, changed in (change for change in self.changes if change[0] <= step):
            done += (1 - done) * (at - begin) / max(1, total - begin)
            begin, total = at, changed
        return done + (1 - done) * (step - begin) / max(1, total - begin)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at the saved step of this schedule, whose total may be larger than the saved one's.

        Load the optimizer first: its learning rates are set to those of the step.
        """
        super().load_state_dict(state_dict)
        factors = [factor(self.last_epoch) for factor in self.lr_lambdas]
        self._last_lr = [base * factor for base, factor in zip(self.base_lrs, factors, strict=True)]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate
