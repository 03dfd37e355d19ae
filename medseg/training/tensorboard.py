"""A training in TensorBoard."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch.optim import Optimizer

from medseg.training.case_figures import case_figures
from medseg.training.earlier_files import move_aside
from medseg.training.history import last_loss, numbers
from medseg.training.processes import is_main_process


class TensorBoardHistory:
    """Write loss and learning rate of every step, and after each validation its metrics, pictures and histograms.

    The metrics (with `medseg.evaluation.MeanCaseDice` also the Dice of each class) are under `validation/`; pictures
    show the last validated case as `seg.show()` does: the image, and laid over it the reference and the prediction;
    histograms show each parameter and its gradient in the last step. All over the number of steps. A resumed training
    replaces what was written after its checkpoint; one that starts anew moves what it finds to `events_1` and so on.
    Without matplotlib there are no pictures and one warning says so. Only the first process writes.

    Args:
        log_dir: where the event file goes.
        optimizer: whose learning rate (of the first parameter group) is written.
        evaluator: validation engine; None for none.
        network: whose parameters are shown; None for none.
        labels: value by name, the plan's, for the pictures' colours and legend; None takes the values found.
    """

    def __init__(
        self,
        log_dir: str | Path,
        optimizer: Optimizer,
        evaluator: Engine | None = None,
        network: torch.nn.Module | None = None,
        labels: Mapping[str, int] | None = None,
    ) -> None:
        self.log_dir = Path(log_dir)
        self.optimizer = optimizer
        self.evaluator = evaluator
        self.network = network
        self.labels = labels
        self._writer: Any = None

    def attach(self, engine: Engine) -> None:
        """Follow `engine`, a MONAI trainer."""
        if not is_main_process():
            return
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._write_step)
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.EPOCH_COMPLETED, self._write_validation, engine)
        engine.add_event_handler(Events.COMPLETED, self._close)
        engine.add_event_handler(Events.TERMINATE, self._close)

    def _open(self, engine: Engine) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if not engine.state.iteration:
            move_aside(sorted(self.log_dir.glob("events.out.tfevents.*")), self.log_dir / "events")
        self._writer = SummaryWriter(str(self.log_dir), purge_step=engine.state.iteration + 1)

    def _write_step(self, engine: Engine) -> None:
        step = engine.state.iteration
        self._writer.add_scalar("train/loss", last_loss(engine), step)
        self._writer.add_scalar("train/learning_rate", self.optimizer.param_groups[0]["lr"], step)

    def _write_validation(self, evaluator: Engine, engine: Engine) -> None:
        if self._writer is None:  # evaluated on its own
            return
        step = engine.state.iteration
        for name, value in numbers(evaluator.state.metrics).items():
            self._writer.add_scalar(f"validation/{name}", value, step)
        self._write_pictures(evaluator, step)
        for name, parameter in self.network.named_parameters() if self.network is not None else ():
            self._writer.add_histogram(f"weights/{name}", parameter.detach().float().cpu(), step)
            if parameter.grad is not None:
                self._writer.add_histogram(f"gradients/{name}", parameter.grad.float().cpu(), step)
        self._writer.flush()

    def _write_pictures(self, evaluator: Engine, step: int) -> None:
        try:
            figures = case_figures(evaluator.state.output, self.labels)
        except ImportError as error:
            warnings.warn(f"TensorBoard gets no pictures: {error}", stacklevel=2)
            return
        for name, figure in figures.items():
            self._writer.add_figure(f"validation/{name}", figure, step)

    def _close(self, engine: Engine) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
