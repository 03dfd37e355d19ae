"""Write a training to TensorBoard, with pictures of a validated case."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.transforms import ResampleToMatch
from monai.utils.enums import CommonKeys as Keys
from torch.optim import Optimizer

from medseg.errors import one_line
from medseg.figures.planes import labelled_center
from medseg.figures.three_planes import three_planes
from medseg.training.distributed import is_main_process
from medseg.training.history import last_loss, numbers
from medseg.volumes.files import set_aside


class TensorBoardHandler:
    """Write loss and learning rate of every step, and after each validation its metrics, pictures and histograms.

    The metrics are under `validation/` (with `medseg.evaluation.MeanCaseDice` also the Dice of each class). The
    pictures show the last validated case as `seg.show()` does: the image alone, under the reference, and under the
    prediction. The histograms show each parameter and its gradient in the last step. The x axis is the number of steps.
    A resumed training replaces what was written after its checkpoint; a new one moves the events it finds to
    `events_1` and so on. Without matplotlib there are no pictures, and one warning says so. If the disk is full, a
    warning says that the events end, and the training goes on. Only the first process writes.

    Args:
        log_dir: folder of the event file.
        optimizer: the learning rate of its first parameter group is written.
        evaluator: validation engine; None for none.
        network: network whose parameters are shown; None for none.
        labels: value by name, as in the plan, for the pictures' colours and legend; None takes the values found.
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
        self._hook = threading.excepthook

    def attach(self, engine: Engine) -> None:
        """Write the training of `engine`, a MONAI trainer."""
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
            set_aside(sorted(self.log_dir.glob("events.out.tfevents.*")), self.log_dir / "events")
        self._hook, threading.excepthook = threading.excepthook, self._ignore_writing_thread
        with self._stop_on_errors():
            self._writer = SummaryWriter(str(self.log_dir), purge_step=engine.state.iteration + 1)

    def _ignore_writing_thread(self, failure: threading.ExceptHookArgs) -> None:
        """Print no traceback of the thread that writes events: its exception is raised again by the next event."""
        if type(failure.thread).__module__.partition(".")[0] != "tensorboard":
            self._hook(failure)

    @contextmanager
    def _stop_on_errors(self) -> Iterator[None]:
        """Write no further events after one that could not be written."""
        try:
            yield
        except OSError as error:
            self._writer = None
            warnings.warn(f"{self.log_dir}: TensorBoard's events end here ({one_line(error)})", stacklevel=3)

    def _write_step(self, engine: Engine) -> None:
        if self._writer is None:
            return
        step = engine.state.iteration
        with self._stop_on_errors():
            self._writer.add_scalar("train/loss", last_loss(engine), step)
            self._writer.add_scalar("train/learning_rate", self.optimizer.param_groups[0]["lr"], step)

    def _write_validation(self, evaluator: Engine, engine: Engine) -> None:
        if self._writer is None:  # the evaluator runs without the trainer, or the disk was full
            return
        step = engine.state.iteration
        with self._stop_on_errors():
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
            with self._stop_on_errors():
                self._writer.close()
        self._writer = None
        threading.excepthook = self._hook


def case_figures(output: Any, labels: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Draw a MONAI evaluator's output: the image alone, under the reference, and under the prediction.

    All figures show the planes through the middle of the reference. The first case of a batch is drawn. An image on
    another grid than a label map (a scan that was resampled for the network, and its reference that was not) is
    resampled to the label map's grid.

    Args:
        output: `image`, `label` and `pred` of a batch, or a list with these of each case; each (C, …), logits or one
            channel of label values.
        labels: value by name, for colours and legend; None takes the values found.

    Returns:
        Figure by name: image, reference, prediction. Empty without an image or a reference, and if the shapes differ
        and there is no geometry.

    Raises:
        ImportError: matplotlib is not installed.
    """
    case = _first_case(output)
    if Keys.IMAGE not in case or Keys.LABEL not in case:
        return {}
    reference = _label_map(case[Keys.LABEL])
    center = labelled_center(reference)
    figures: dict[str, Any] = {}
    for name, key in (("reference", Keys.LABEL), ("prediction", Keys.PRED)):
        found = case.get(key)
        scan = None if found is None else _on_the_grid_of(found, case[Keys.IMAGE])
        if found is None or scan is None:
            continue
        array, label_map, affine = scan[0].numpy(), _label_map(found), _affine(found)
        through = center if label_map.shape == reference.shape else None
        if name == "reference":
            figures["image"] = three_planes(array, np.zeros_like(label_map), affine, {}, title="image", center=through)
        figures[name] = three_planes(array, label_map, affine, labels, title=name, center=through)
    return figures


def _first_case(output: Any) -> dict[str, torch.Tensor]:
    """Return the items of the first case on the CPU; empty if nothing was validated."""
    if not output:
        return {}
    first = output[0] if isinstance(output, list) else output
    found = {key: first[key] for key in (Keys.IMAGE, Keys.LABEL, Keys.PRED) if first.get(key) is not None}
    return {key: (item if first is not output else item[0]).detach().cpu() for key, item in found.items()}


def _on_the_grid_of(other: torch.Tensor, image: torch.Tensor) -> torch.Tensor | None:
    """Resample the image's first channel (1, …) to the other's grid; None if the grids differ without geometry."""
    first = image[:1].float()
    is_same_shape = first.shape[1:] == other.shape[1:]
    if not (isinstance(image, MetaTensor) and isinstance(other, MetaTensor)):
        return first.as_subclass(torch.Tensor) if is_same_shape else None
    if is_same_shape and np.allclose(_affine(image), _affine(other), atol=1e-3):
        return first.as_subclass(torch.Tensor)
    matched = ResampleToMatch(mode="bilinear", padding_mode="zeros")(first, img_dst=other)
    return matched.as_subclass(torch.Tensor)


def _label_map(item: torch.Tensor) -> np.ndarray:
    """Return the only channel, or the class of the largest of several logits."""
    plain = item.as_subclass(torch.Tensor)
    return (plain[0] if len(plain) == 1 else plain.argmax(0)).numpy().astype(np.int64)


def _affine(item: torch.Tensor) -> np.ndarray:
    """Return the 4×4 affine from voxel index to mm; the identity without geometry."""
    return np.asarray(item.affine, dtype=float) if isinstance(item, MetaTensor) else np.eye(4)
