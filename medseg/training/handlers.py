"""Attach everything a training run needs to MONAI's trainer, and show its progress."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from tqdm.auto import tqdm

from medseg.plan import Plan
from medseg.training.checkpoint import CheckpointHandler
from medseg.training.distributed import is_main_process
from medseg.training.history import TrainingHistoryHandler, last_loss
from medseg.training.iteration import FiniteSteps, SupervisedUpdate
from medseg.training.record import TrainingRecordHandler
from medseg.training.tensorboard import TensorBoardHandler
from medseg.volumes.files import file_sha256
from medseg.weights import load_into


class TrainingRunHandler:
    """Attach all handlers of a training run in the one order that works.

    Checkpoints come first, because resuming restores what the others read. The given handlers follow: the learning
    rate, validation, your own. Then come those that record the epoch: `history.csv` and `training.png`, TensorBoard,
    the progress bar, and at the end `model.pt` and `training.json`. All files go to `output_dir`.

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
    ) -> None:
        objects = {**state, "update": update}
        optimizer = state["optimizer"]
        self.update = update
        self.init_weights = init_weights
        self.checkpoints = CheckpointHandler(
            Path(output_dir) / "checkpoints", objects, plan, resume, checkpoint_interval, evaluator=evaluator
        )
        self.handlers = {
            **(handlers or {}),
            "history": TrainingHistoryHandler(output_dir, optimizer, evaluator),
            "tensorboard": TensorBoardHandler(
                output_dir, optimizer, evaluator, update.network, plan.channels_of_labels
            ),
            "progress": TrainingProgressHandler(evaluator),
        }
        self.record = TrainingRecordHandler(output_dir, update.averaged.module, plan, cases, settings, evaluator)

    def attach(self, engine: Engine) -> None:
        """Attach the handlers to a MONAI trainer, and load what it starts from.

        Raises:
            WeightsError: a checkpoint cannot be resumed, or the initial weights are absent or do not fit.
        """
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
    """Show one progress bar for the whole training: remaining time, smoothed loss, last validation metrics.

    `ignite.handlers.ProgressBar` shows one bar per epoch and does not know where a resumed training started.

    Args:
        evaluator: validation engine whose metrics are shown; None for none.
        smoothing: weight of the newest loss in the running mean, in (0, 1].
    """

    def __init__(self, evaluator: Engine | None = None, smoothing: float = 0.05) -> None:
        self.evaluator = evaluator
        self.smoothing = smoothing
        self._loss: float | None = None
        self._bar: tqdm | None = None

    def attach(self, engine: Engine) -> None:
        """Show the progress of `engine`, a MONAI trainer."""
        if not is_main_process():
            return
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
        engine.add_event_handler(Events.COMPLETED, self._close)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)

    def _open(self, engine: Engine) -> None:
        total = (engine.state.max_epochs or 0) * (engine.state.epoch_length or 0)
        self._bar = tqdm(total=total, initial=engine.state.iteration, unit="step", dynamic_ncols=True, desc="training")

    def _advance(self, engine: Engine) -> None:
        if self._bar is None:
            return
        loss, steps = last_loss(engine), FiniteSteps.of(engine)
        if not steps.is_last_skipped:
            self._loss = loss if self._loss is None else self._loss + self.smoothing * (loss - self._loss)
        shown = {"epoch": f"{engine.state.epoch}/{engine.state.max_epochs}"}
        shown |= {"loss": f"{self._loss:.4f}"} if self._loss is not None else {}
        shown |= {"skipped": str(steps.skipped)} if steps.skipped else {}
        metrics = self.evaluator.state.metrics if self.evaluator is not None else {}
        shown |= {name: f"{value:.4f}" for name, value in metrics.items() if isinstance(value, float)}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update()

    def _close(self, engine: Engine) -> None:
        if self._bar is not None:
            self._bar.close()

    def _fail(self, engine: Engine, error: BaseException) -> None:
        self._close(engine)  # so that the error message starts on a line of its own
        raise error  # ignite swallows the exception as soon as a handler listens to it
