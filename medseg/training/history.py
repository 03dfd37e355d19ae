"""Record the course of a training as a table, `history.csv`, and a picture, `training.png`."""

from __future__ import annotations

import csv
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys as Keys
from torch.optim import Optimizer

from medseg.figures.canvas import label_color, new_figure, save_png
from medseg.training.distributed import is_main_process
from medseg.training.iteration import FiniteSteps
from medseg.volumes.files import replacing, set_aside

Row = dict[str, float]
_OTHER_COLUMNS = ("step", "epoch", "loss", "skipped_steps", "learning_rate")


class TrainingHistoryHandler:
    """Write `history.csv` after every epoch, and draw `training.png` after every validation and at the end.

    A row holds the step, the epoch (a fraction if validation comes inside one), the mean training loss since the row
    before, the learning rate, and the validation metrics, if any. If steps were skipped (see `FiniteSteps`), it also
    holds their number, and their losses are not part of the mean. A resumed training keeps the rows up to its
    checkpoint; a new one renames the files it finds. Without matplotlib there is no picture, and one warning says so.
    Only the first process writes.

    Args:
        output_dir: the run's folder.
        optimizer: the learning rate of its first parameter group is recorded.
        evaluator: validation engine whose metrics are recorded; None for none.
    """

    def __init__(self, output_dir: str | Path, optimizer: Optimizer, evaluator: Engine | None = None) -> None:
        self.output_dir = Path(output_dir)
        self.optimizer = optimizer
        self.evaluator = evaluator
        self.rows: list[Row] = []
        self._losses: list[float] = []
        self._skipped = 0

    def attach(self, engine: Engine) -> None:
        """Record the training of `engine`, a MONAI trainer."""
        if not is_main_process():
            return
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add_loss)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)
        engine.add_event_handler(Events.COMPLETED, self._draw)
        if self.evaluator is not None:
            self.evaluator.add_event_handler(Events.EPOCH_COMPLETED, self._end_validation, engine)

    def _start(self, engine: Engine) -> None:
        if not engine.state.iteration:
            set_aside([self.output_dir / name for name in ("history.csv", "training.png")])
        earlier = read_history(self.output_dir / "history.csv")
        self.rows = [row for row in earlier if row["step"] <= engine.state.iteration]

    def _add_loss(self, engine: Engine) -> None:
        if FiniteSteps.of(engine).is_last_skipped:
            self._skipped += 1
        else:
            self._losses.append(last_loss(engine))

    def _end_epoch(self, engine: Engine) -> None:
        self._current_row(engine)
        write_history(self.output_dir / "history.csv", self.rows)

    def _end_validation(self, evaluator: Engine, engine: Engine) -> None:
        self._current_row(engine).update(numbers(evaluator.state.metrics))
        write_history(self.output_dir / "history.csv", self.rows)
        self._draw(engine)

    def _draw(self, engine: Engine) -> None:
        if not self.rows:  # a resumed training without its history and without an epoch left
            return
        try:
            draw_history(self.rows, self.output_dir / "training.png")
        except ImportError as error:
            warnings.warn(f"training.png is not drawn: {error}", stacklevel=2)

    def _current_row(self, engine: Engine) -> Row:
        """Return the row of this step; the end of an epoch and a validation at the same step share it."""
        step = engine.state.iteration
        if not self.rows or self.rows[-1]["step"] != step:
            self.rows.append({"step": step, "epoch": round(step / (engine.state.epoch_length or 1), 4)})
        if self._losses:
            self.rows[-1]["loss"] = math.fsum(self._losses) / len(self._losses)
            self._losses.clear()
        if self._skipped:
            self.rows[-1]["skipped_steps"] = self._skipped
            self._skipped = 0
        self.rows[-1]["learning_rate"] = float(self.optimizer.param_groups[0]["lr"])
        return self.rows[-1]


def read_history(path: Path) -> list[Row]:
    """Read the rows of a `history.csv`; none if there is no such file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return [{name: _parsed(value) for name, value in row.items() if value} for row in csv.DictReader(stream)]


def write_history(path: Path, rows: list[Row]) -> None:
    """Write all rows; columns are in the order in which the rows introduce them."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)


def draw_history(rows: list[Row], path: Path) -> Path:
    """Draw the loss with the learning rate, and the validation metrics, over the epochs.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure = new_figure(10, 3.8)
    left, right = figure.subplots(1, 2)
    _plot(left, rows, "loss", "#222222", "loss")
    left.set(xlabel="epoch", ylabel="training loss")
    rate = left.twinx()
    _plot(rate, rows, "learning_rate", "#999999", "learning rate", linestyle=":")
    rate.set_ylabel("learning rate", color="#777777")
    rate.set_ylim(bottom=0)
    names = [name for name in dict.fromkeys(n for row in rows for n in row) if name not in _OTHER_COLUMNS]
    key = names[0] if names else ""
    for position, name in enumerate(names):
        label = name.removeprefix(f"{key}_") if position else key
        color = label_color(position - 1) if position else "#222222"
        _plot(right, rows, name, color, f"{label} {_last(rows, name):.4f}", marker=".")
    right.set(xlabel="epoch", ylabel="validation", xlim=left.get_xlim())
    right.grid(alpha=0.3)
    if names:
        # above the axes, where it hides no curve
        right.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8, frameon=False)
    figure.tight_layout()
    return save_png(figure, path)


def last_loss(engine: Engine) -> float:
    """Return the loss of a MONAI trainer's last step, whether its output is decollated or not."""
    output = engine.state.output
    return float((output[0] if isinstance(output, list) else output)[Keys.LOSS].detach())


def numbers(metrics: Mapping[str, Any]) -> Row:
    """Return those metrics of an evaluator that are a single number of Python, NumPy or torch."""
    return {name: float(value) for name, value in metrics.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _plot(axes: Any, rows: list[Row], name: str, color: str, label: str, **style: Any) -> None:
    points = [(row["epoch"], row[name]) for row in rows if name in row]
    if points:
        axes.plot(*zip(*points, strict=True), color=color, label=label, linewidth=1.3, **style)


def _last(rows: list[Row], name: str) -> float:
    return next(row[name] for row in reversed(rows) if name in row)


def _parsed(value: str) -> float:
    return int(value) if value.isdecimal() else float(value)
