"""Change the number of epochs while a training runs, so that it ends within its time budget."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from monai.handlers import ValidationHandler

from medseg.training.time_budget import PLANNED_SHARE

# The number of epochs stays as long as the end is off by less than this share of the time that is left: early there is
# time to correct it, and the speed may change again. Late, what was left free for slow steps may be used.
TOLERANCE = 0.1
# The time of an epoch is the mean of the last ones, in this share of the time that is left, and at least of so many.
RECENT_SHARE, MIN_RECENT = 0.2, 3
_IMPORTED = time.monotonic()


class TimeBudgetHandler:
    """Measure the epochs of a training, and change their number if it would end too early or too late.

    Before each epoch the end is predicted from the time of the last epochs and of the last validation. The aim is 97 %
    of the budget. If the end is off by more than 3 % of the budget and by more than 10 % of the time that is left,
    `max_epochs` becomes what the aim allows, and the learning rate reaches its end there without a jump (see
    `PolynomialWarmUp.end_at`). The last epoch is validated even if it is none of the regular ones.

    A resumed training counts the time up to its checkpoint and from its own start, not the time in between. `changes`
    repeats a training bit for bit on another machine, because they were decided by a clock.

    Args:
        seconds: time from the start of the process to its end; None measures nothing and only repeats `changes`.
        scheduler: of the learning rate; without a method `end_at`, its rates stay as they are.
        evaluator: validation engine; None for none.
        validation: MONAI's `ValidationHandler` that runs it regularly; None for none.
        changes: pairs of an epoch and the `max_epochs` from then on, as `changes` of a finished training has them.
        clock: returns the seconds since the start of the process.
    """

    def __init__(
        self,
        seconds: float | None,
        scheduler: Any = None,
        evaluator: Engine | None = None,
        validation: Any = None,
        changes: Sequence[Sequence[int]] = (),
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.seconds = seconds
        self.scheduler = scheduler
        self.evaluator = evaluator
        self.validation = validation if isinstance(validation, ValidationHandler) else None
        self.clock = clock or seconds_since_start
        self.changes: list[list[int]] = []
        self._planned = {int(epoch): int(max_epochs) for epoch, max_epochs in changes}
        self._earlier = 0.0  # time of the processes before this one
        self._epochs: list[float] = []  # seconds of each epoch of this process, without its validation
        self._started: float | None = None
        self._last_validation = self._validated = 0.0  # seconds of the last one, and of all since the epoch's start

    def attach(self, engine: Engine) -> None:
        """Keep the budget of `engine`, a MONAI trainer whose checkpoint is loaded and whose validation is attached."""
        if self.changes:  # of a checkpoint
            engine.state.max_epochs = self.changes[-1][1]
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._validate_last)
        if self.evaluator is not None:
            started = [0.0]
            self.evaluator.add_event_handler(Events.STARTED, lambda: started.__setitem__(0, self.clock()))
            self.evaluator.add_event_handler(Events.COMPLETED, lambda: self._count_validation(started[0]))

    def state_dict(self) -> dict[str, Any]:
        """Return the time and the changes until now."""
        return {"seconds": self._earlier + self.clock(), "changes": [list(change) for change in self.changes]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the time and the changes of a checkpoint."""
        self._earlier = float(state["seconds"])
        self.changes[:] = [list(change) for change in state["changes"]]

    def _count_validation(self, started: float) -> None:
        self._last_validation = self.clock() - started
        self._validated += self._last_validation

    def _start_epoch(self, engine: Engine) -> None:
        now = self.clock()
        if self._started is not None:
            self._epochs.append(now - self._started - self._validated)
        self._started, self._validated = now, 0.0
        epoch, planned = engine.state.epoch, int(engine.state.max_epochs or 0)
        wanted = self._planned.get(epoch, planned)
        if self.seconds is not None:
            left = self.seconds - self._earlier - now
            wanted = self._wanted(epoch, planned, left, int(engine.state.epoch_length or 0))
            if idist.get_world_size() > 1:
                wanted = int(idist.all_reduce(float(wanted), "MIN"))
        if wanted != planned:
            engine.state.max_epochs = wanted
            self.changes.append([epoch, wanted])
            if hasattr(self.scheduler, "end_at"):
                self.scheduler.end_at(wanted * int(engine.state.epoch_length or 0))
            engine.logger.info(f"time budget: {wanted} epochs instead of {planned}, decided at epoch {epoch}")

    def _wanted(self, epoch: int, planned: int, left: float, steps: int) -> int:
        """Return the number of epochs of the whole training, at least the one that starts now.

        Args:
            epoch: number of the epoch that starts, from 1.
            planned: number of epochs until now.
            left: seconds of the budget.
            steps: number of them in an epoch.
        """
        assert self.seconds is not None
        if not self._epochs:
            return planned
        # the first epoch of a process takes longer
        measured = self._epochs[1:] or self._epochs
        each = _mean_of_last(measured, RECENT_SHARE * left)

        def takes(last: int) -> float:
            return (last - epoch + 1) * each + self._validations(epoch, last, steps) * self._last_validation

        reserve = (1 - PLANNED_SHARE) * self.seconds
        spare = left - takes(planned)
        is_in_time = abs(spare - reserve) <= max(reserve, TOLERANCE * left)
        is_early = len(measured) < MIN_RECENT <= planned - epoch
        # a validation may take long, and the planned number of epochs allows for it
        is_unknown = self.validation is not None and not self._last_validation and spare > 0
        if is_in_time or is_early or is_unknown:
            return planned
        target = left - reserve
        low, high = epoch, max(epoch + 1, epoch + int(target / max(each, 1e-9)) + 1)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if takes(middle) <= target else (low, middle)
        return low

    def _validations(self, epoch: int, last: int, steps: int) -> int:
        """Return the number of validations in the epochs from `epoch` to `last`, of which the last one is validated."""
        if self.validation is None:
            return 0
        interval = self.validation.interval
        if not self.validation.epoch_level:
            return last * steps // interval - (epoch - 1) * steps // interval
        return last // interval - (epoch - 1) // interval + bool(last % interval)

    def _validate_last(self, engine: Engine) -> None:
        is_last = engine.state.epoch == engine.state.max_epochs
        if is_last and self.evaluator is not None and self.evaluator.state.epoch != engine.state.epoch:
            self.evaluator.run(engine.state.epoch)


def _mean_of_last(epochs: Sequence[float], seconds: float) -> float:
    """Return the mean of the last epochs: as many as took `seconds` together, and at least `MIN_RECENT`."""
    total, count = 0.0, 0
    for took in reversed(epochs):
        if count >= MIN_RECENT and total >= seconds:
            break
        total, count = total + took, count + 1
    return total / count


def seconds_since_start() -> float:
    """Return the seconds since this process was started; elsewhere than on Linux, since this module was imported."""
    try:
        ticks = int(
            Path("/proc/self/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[19]
        )
        uptime = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
        return uptime - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return time.monotonic() - _IMPORTED
