"""A progress bar over the whole training."""

from __future__ import annotations

from ignite.engine import Engine, Events
from tqdm.auto import tqdm

from medseg.training.finite_steps import FiniteSteps
from medseg.training.history import last_loss
from medseg.training.processes import is_main_process


class TrainingProgress:
    """One bar from the first to the last iteration: time left, a smoothed loss, the last validation metrics.

    Args:
        evaluator: validation engine whose key metric is shown; None for none.
        smoothing: weight of the newest loss in the running mean, in (0, 1].
    """

    def __init__(self, evaluator: Engine | None = None, smoothing: float = 0.05) -> None:
        self.evaluator = evaluator
        self.smoothing = smoothing
        self._loss: float | None = None
        self._bar: tqdm | None = None

    def attach(self, engine: Engine) -> None:
        """Follow `engine`, a MONAI trainer."""
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
        self._close(engine)
        raise error  # ignite swallows the exception once a handler listens to it
