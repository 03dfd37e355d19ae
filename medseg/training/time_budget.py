"""Plan the number of epochs of a training from what its parts cost, so that a time budget is kept."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from medseg.errors import OptionError

# Part of a budget that is planned for. The rest is for steps that get slower than those of the probe.
PLANNED_SHARE = 0.97
_MOST_EPOCHS = 1_000_000


@dataclass(frozen=True)
class Costs:
    """Hold the time of each part of a training, as measured by `medseg.training.probe`.

    Args:
        num_workers: worker processes of the data loader.
        num_cases: training cases.
        num_validation_cases: validation cases.
        steps_per_epoch: optimiser steps of each process in an epoch.
        start_seconds: from the start of the process to the first step, loading of the cases included.
        step_seconds: mean of one step with its samples.
        sample_seconds: mean of drawing one batch in one process; 0 if worker processes draw it.
        epoch_seconds: what an epoch takes beyond its steps.
        checkpoint_seconds: writing one checkpoint.
        checkpoint_interval: epochs between checkpoints.
        validation_seconds: one validation with all cases.
        validation_interval: epochs between validations, or steps; see `validates_epochs`.
        validates_epochs: the validation interval counts epochs, not steps.
        end_seconds: from the last epoch to the end of the process.
        memory_bytes: largest memory of all processes of the run, cases in memory included.
        case_bytes: all prepared cases, in memory or in mapped files.
        disk_bytes: checkpoints and weights of the run, and its mapped files.
    """

    num_workers: int
    num_cases: int
    num_validation_cases: int
    steps_per_epoch: int
    start_seconds: float
    step_seconds: float
    sample_seconds: float
    epoch_seconds: float
    checkpoint_seconds: float
    checkpoint_interval: int
    validation_seconds: float
    validation_interval: int
    validates_epochs: bool
    end_seconds: float
    memory_bytes: int = 0
    case_bytes: int = 0
    disk_bytes: int = 0

    def seconds(self, epochs: int, validation_interval: int | None = None) -> float:
        """Return how long a training of that many epochs takes, from the start of its process to the end.

        Args:
            epochs: number of epochs.
            validation_interval: replaces the interval of these costs.
        """
        interval = self.validation_interval if validation_interval is None else validation_interval
        counted = epochs if self.validates_epochs else epochs * self.steps_per_epoch
        return (
            self.start_seconds
            + epochs * (self.steps_per_epoch * self.step_seconds + self.epoch_seconds)
            + -(-epochs // self.checkpoint_interval) * self.checkpoint_seconds
            + counted // interval * self.validation_seconds
            + self.end_seconds
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {name: round(value, 6) if isinstance(value, float) else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class Schedule:
    """Number of epochs, epochs between validations (or steps; see `Costs`), and the expected time of a run."""

    max_epochs: int
    val_interval: int
    seconds: float


def plan_schedule(costs: Costs, budget_seconds: float, share_of_epochs: float | None = None) -> Schedule:
    """Choose the largest number of epochs that a time budget allows.

    The last epoch is validated: among the intervals close to `share_of_epochs`, the one is chosen that leaves the
    fewest epochs of the budget unused.

    Args:
        costs: of the training.
        budget_seconds: from the start of the training's process to its end.
        share_of_epochs: epochs between two validations as a share of all epochs, such as 0.1; None keeps the interval
            of the costs.

    Raises:
        OptionError: not even one epoch fits into the budget.
    """
    planned = PLANNED_SHARE * budget_seconds
    shortest = costs.seconds(1, 1)
    if shortest > planned:
        raise OptionError(
            f"the time is too short for one epoch of {costs.steps_per_epoch} steps; found "
            f"{duration(budget_seconds)}, expected at least {duration(math.ceil(shortest / PLANNED_SHARE))}; allow "
            "more time, or use fewer cases"
        )
    if share_of_epochs is None or not costs.validates_epochs:
        epochs = _most_epochs(costs, planned, costs.validation_interval)
        return Schedule(epochs, costs.validation_interval, costs.seconds(epochs))
    wanted = max(1, round(share_of_epochs * _most_epochs(costs, planned, None)))
    best: Schedule | None = None
    for interval in range(max(1, round(0.7 * wanted)), max(1, round(1.3 * wanted)) + 1):
        epochs = _most_epochs(costs, planned, interval) // interval * interval
        if epochs and (best is None or epochs > best.max_epochs):
            best = Schedule(epochs, interval, costs.seconds(epochs, interval))
    if best is None:
        epochs = _most_epochs(costs, planned, 1)
        best = Schedule(epochs, epochs, costs.seconds(epochs, epochs))
    return best


def _most_epochs(costs: Costs, seconds: float, interval: int | None) -> int:
    """Return the largest number of epochs that takes at most that long, at least 1; without validation if None."""

    def takes(epochs: int) -> float:
        return costs.seconds(epochs, epochs * costs.steps_per_epoch + 1 if interval is None else interval)

    low, high = 1, 2
    while takes(high) <= seconds and high < _MOST_EPOCHS:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if takes(middle) <= seconds else (low, middle)
    return low


def duration(seconds: float) -> str:
    """Return a time in words, with two units at most: `1 h 58 min`, `12 min`, `40 s`."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 10 or seconds == round(seconds) else f"{seconds:.1f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
