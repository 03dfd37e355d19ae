"""A training in TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys as Keys
from torch.optim import Optimizer

from medseg.figures.label_colors import color_labels
from medseg.training.history import last_loss
from medseg.training.processes import is_main_process


class TensorBoardHistory:
    """Write loss and learning rate of every step, and after each validation its metrics, pictures and histograms.

    The metrics (with `medseg.evaluation.MeanCaseDice` also the Dice of each class) are under `validation/`; pictures
    show the image, the reference and the prediction of the last validated case through the middle of its structures;
    histograms show each parameter and its gradient in the last step. All over the number of steps. A resumed training
    replaces what was written after its checkpoint. Only the first process writes.

    Args:
        log_dir: where the event file goes.
        optimizer: whose learning rate (of the first parameter group) is written.
        evaluator: validation engine; None for none.
        network: whose parameters are shown; None for none.
    """

    def __init__(
        self,
        log_dir: str | Path,
        optimizer: Optimizer,
        evaluator: Engine | None = None,
        network: torch.nn.Module | None = None,
    ) -> None:
        self.log_dir = Path(log_dir)
        self.optimizer = optimizer
        self.evaluator = evaluator
        self.network = network
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

        self._writer = SummaryWriter(str(self.log_dir), purge_step=engine.state.iteration + 1)

    def _write_step(self, engine: Engine) -> None:
        step = engine.state.iteration
        self._writer.add_scalar("train/loss", last_loss(engine), step)
        self._writer.add_scalar("train/learning_rate", self.optimizer.param_groups[0]["lr"], step)

    def _write_validation(self, evaluator: Engine, engine: Engine) -> None:
        if self._writer is None:  # evaluated on its own
            return
        step = engine.state.iteration
        for name, value in evaluator.state.metrics.items():
            self._writer.add_scalar(f"validation/{name}", float(value), step)
        for name, picture in case_pictures(evaluator.state.output).items():
            self._writer.add_image(f"validation/{name}", picture, step, dataformats="HWC")
        for name, parameter in self.network.named_parameters() if self.network is not None else ():
            self._writer.add_histogram(f"weights/{name}", parameter.detach().float().cpu(), step)
            if parameter.grad is not None:
                self._writer.add_histogram(f"gradients/{name}", parameter.grad.float().cpu(), step)
        self._writer.flush()

    def _close(self, engine: Engine) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def case_pictures(output: Any) -> dict[str, np.ndarray]:
    """RGB slices (H, W, 3) of `image`, `label` and `pred` of the first case of a MONAI evaluator's output.

    Each volume is cut at the slice of its third axis with most of the reference (the image, which may be on another
    grid, at the same fraction of its depth).
    """
    case = output[0] if isinstance(output, list) else {key: value[0] for key, value in output.items()}
    volumes = {name: _spatial(case[name]) for name in (Keys.IMAGE, Keys.LABEL, Keys.PRED) if name in case}
    if Keys.LABEL not in volumes:
        return {}
    reference = volumes[Keys.LABEL]
    depth = float((reference > 0).sum((0, 1)).argmax()) / max(reference.shape[2], 1)
    cut = {name: volume[:, :, round(depth * volume.shape[2])].T for name, volume in volumes.items()}
    return {str(name): _grey(plane) if name == Keys.IMAGE else color_labels(plane) for name, plane in cut.items()}


def _spatial(item: torch.Tensor) -> np.ndarray:
    """The first channel, or the class of the largest of several logits, as (i, j, k); 2D gets k = 1."""
    item = item.detach().as_subclass(torch.Tensor).float()
    plain = item[0] if len(item) == 1 else item.argmax(0)
    array = plain.cpu().numpy()
    return array[..., None] if array.ndim == 2 else array


def _grey(plane: np.ndarray) -> np.ndarray:
    low, high = np.percentile(plane, [1, 99])
    grey = np.clip((plane - low) / (high - low if high > low else 1), 0, 1)
    return np.repeat((255 * grey).astype(np.uint8)[..., None], 3, axis=2)
