"""Attach everything a training run needs to MONAI's trainer, and show its progress."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from tqdm.auto import tqdm

from medseg.plan import Plan
from medseg.training.budget_handler import TimeBudgetHandler
from medseg.training.checkpoint import CheckpointHandler
from medseg.training.distributed import is_main_process
from medseg.training.history import TrainingHistoryHandler, last_loss
from medseg.training.iteration import FiniteSteps, SupervisedUpdate
from medseg.training.record import TrainingRecordHandler
from medseg.training.tensorboard import TensorBoardHandler
from medseg.training.time_budget import duration
from medseg.volumes.files import file_sha256, remove_leftovers, sole_writer
from medseg.weights import load_into


class TrainingRunHandler:
    """Attach all handlers of a training run in the one order that works.

    Checkpoints come first, because resuming restores what the others read. The given handlers follow: the learning
    rate, validation, your own, and the time budget if there is one. Then come those that record the epoch:
    `history.csv` and `training.png`, TensorBoard, the progress bar, and at the end `model.pt` and `training.json`. All
    files go to `output_dir`.

    Args:
        output_dir: the run's folder.
        plan: the plan of the training.
        update: the engines' steps; its averaged network is the result of the run.
        state: name → object with `state_dict` that a resumed training needs: network, optimizer, lr_scheduler. The
            learning rate of `optimizer` is recorded.
        evaluator: validation engine.
        cases: the training cases, dictionaries of file names (see `TrainingRecordHandler`).
        settings: values to record, e.g. seed and fold.
        handlers: other handlers by name, attached in this order. Names let a recipe change or disable one of them.
        resume: continue from the newest checkpoint in `output_dir` (see `CheckpointHandler`).
        init_weights: weights to start from for fine-tuning; an empty string for none. A file for another number of
            classes or input channels is adapted (see `medseg.weights.load_into`), and a warning reports it.
        checkpoint_interval: epochs between checkpoints.
        budget_seconds: time from the start of the process to its end, in which the training must end, with more or
            fewer epochs than planned if need be (see `TimeBudgetHandler`); None for no limit.
        schedule_changes: changes of the number of epochs in a finished training, from its `training.json`, which this
            one repeats.

    Raises:
        ValueError: the interval or `resume` is not valid.
    """

    def __init__(
        self,
        output_dir: str | Path,
        plan: Plan,
        update: SupervisedUpdate,
        state: Mapping[str, Any],
        evaluator: Engine,
        cases: Sequence[Mapping[str, Any]],
        settings: Mapping[str, Any],
        handlers: Mapping[str, Any] | None = None,
        resume: bool | str = False,
        init_weights: str | Path = "",
        checkpoint_interval: int = 1,
        budget_seconds: float | None = None,
        schedule_changes: Sequence[Sequence[int]] = (),
    ) -> None:
        objects = {**state, "update": update}
        optimizer = state["optimizer"]
        self.update = update
        self.init_weights = init_weights
        self.budget: TimeBudgetHandler | None = None
        if budget_seconds is not None or schedule_changes:
            validation = (handlers or {}).get("validation")
            self.budget = TimeBudgetHandler(
                budget_seconds, state.get("lr_scheduler"), evaluator, validation, schedule_changes
            )
            objects["time_budget"] = self.budget
        self._lock = ExitStack()  # of output_dir; it ends with the process if the training does not
        self.checkpoints = CheckpointHandler(
            Path(output_dir) / "checkpoints", objects, plan, resume, checkpoint_interval, evaluator=evaluator
        )
        self.handlers = {
            **(handlers or {}),
            **({} if self.budget is None else {"time_budget": self.budget}),
            "history": TrainingHistoryHandler(output_dir, optimizer, evaluator),
            "tensorboard": TensorBoardHandler(
                output_dir, optimizer, evaluator, update.network, plan.channels_of_labels
            ),
            "progress": TrainingProgressHandler(evaluator),
        }
        if self.budget is not None:
            settings = {**settings, "budget_seconds": budget_seconds, "schedule_changes": self.budget.changes}
        self.record = TrainingRecordHandler(output_dir, update.averaged.module, plan, cases, settings, evaluator)

    def attach(self, engine: Engine) -> None:
        """Attach the handlers to a MONAI trainer, and load what it starts from.

        Raises:
            WeightsError: a checkpoint cannot be resumed, or the initial weights are absent or do not fit.
            OptionError: another training writes to the output folder.
        """
        if is_main_process():
            self._lock.enter_context(sole_writer(self.checkpoints.directory.parent, "a training"))
            engine.add_event_handler(Events.COMPLETED, lambda engine: self._lock.close())
            remove_leftovers(self.checkpoints.directory.parent)
        self.checkpoints.attach(engine)
        if self.init_weights:
            if not engine.state.iteration:
                report = load_into(self.update.network, self.init_weights, adapt=True)
                warnings.warn(f"training starts from {self.init_weights}: {report}", stacklevel=2)
            if Path(self.init_weights).is_file():  # a resumed run no longer needs it
                self.record.settings["init_weights_sha256"] = file_sha256(self.init_weights)
        for handler in self.handlers.values():
            handler.attach(engine)
        self.record.precision = self.update.precision  # a checkpoint may have decided it
        self.record.attach(engine)


class TrainingProgressHandler:
    """Show the progress of the whole training: remaining time, smoothed loss, last validation metrics.

    In a terminal or notebook this is one progress bar. Elsewhere, in a log file for example, a plain line is printed to
    stderr after an epoch, at most one in `line_seconds`, and after the last one. The environment variable TQDM_DISABLE
    turns both off. `ignite.handlers.ProgressBar` shows one bar per epoch and does not know where a resumed training
    started.

    Args:
        evaluator: validation engine whose metrics are shown; None for none.
        smoothing: weight of the newest loss in the running mean, in (0, 1].
        line_seconds: seconds between plain lines.
    """

    def __init__(self, evaluator: Engine | None = None, smoothing: float = 0.05, line_seconds: float = 30.0) -> None:
        self.evaluator = evaluator
        self.smoothing = smoothing
        self.line_seconds = line_seconds
        self._loss: float | None = None
        self._bar: tqdm | None = None
        self._started = self._printed = 0.0
        self._first_step = 0

    def attach(self, engine: Engine) -> None:
        """Show the progress of `engine`, a MONAI trainer."""
        if not is_main_process():
            return
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)
        engine.add_event_handler(Events.COMPLETED, self._close)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _open(self, engine: Engine) -> None:
        # the mean speed since the start, because validations between steps belong to it
        self._bar = tqdm(
            total=_all_steps(engine),
            initial=engine.state.iteration,
            unit="step",
            dynamic_ncols=True,
            desc="training",
            smoothing=0,
            disable=None if not _is_notebook() else False,
        )
        self._started = self._printed = time.monotonic()
        self._first_step = engine.state.iteration

    def _advance(self, engine: Engine) -> None:
        loss, steps = last_loss(engine), FiniteSteps.of(engine)
        if not steps.is_last_skipped:
            self._loss = loss if self._loss is None else self._loss + self.smoothing * (loss - self._loss)
        if self._bar is None or self._bar.disable:
            return
        self._bar.total = _all_steps(engine)  # a time budget may have changed it
        self._bar.set_postfix(self._shown(engine), refresh=False)
        self._bar.update()

    def _shown(self, engine: Engine) -> dict[str, str]:
        steps = FiniteSteps.of(engine)
        shown = {"epoch": f"{engine.state.epoch}/{engine.state.max_epochs}"}
        shown |= {"loss": f"{self._loss:.4f}"} if self._loss is not None else {}
        shown |= {"skipped": str(steps.skipped)} if steps.skipped else {}
        metrics = self.evaluator.state.metrics if self.evaluator is not None else {}
        return shown | {name: f"{value:.4f}" for name, value in metrics.items() if isinstance(value, float)}

    def _end_epoch(self, engine: Engine) -> None:
        now, is_last = time.monotonic(), engine.state.epoch == engine.state.max_epochs
        is_due = is_last or now - self._printed >= self.line_seconds
        if self._bar is None or not self._bar.disable or not is_due or os.environ.get("TQDM_DISABLE"):
            return
        self._printed = now
        done = engine.state.iteration - self._first_step
        left = (now - self._started) / max(1, done) * (_all_steps(engine) - engine.state.iteration)
        shown = ", ".join(f"{name} {text}" for name, text in self._shown(engine).items())
        print(f"{shown}, {duration(left)} left" if not is_last else shown, file=sys.stderr, flush=True)

    def _close(self, engine: Engine) -> None:
        if self._bar is not None:
            self._bar.close()

    def _fail(self, engine: Engine, error: BaseException) -> None:
        self._close(engine)  # so that the error message starts on a line of its own
        raise error  # ignite swallows the exception as soon as a handler listens to it


def _all_steps(engine: Engine) -> int:
    return (engine.state.max_epochs or 0) * (engine.state.epoch_length or 0)


def _is_notebook() -> bool:
    return "ipykernel" in sys.modules
