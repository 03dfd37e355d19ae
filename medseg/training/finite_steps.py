"""Steps whose loss or gradient is not finite: skipped, counted, and too many of them end the training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine

from medseg.errors import NonFiniteError
from medseg.training.processes import all_agree


class FiniteSteps:
    """How many steps of a training were skipped because they would have put NaN or infinity into the weights.

    Processors and libraries produce such steps too, not only diverging trainings: oneDNN's bf16
    kernels multiply padding with memory nobody wrote, which may hold a NaN (seen with torch 2.13 in the gradient of 3D
    convolutions on maps two voxels deep; on AMX github.com/uxlfoundation/oneDNN/issues/5717). One such step ruins all
    weights, a skipped one costs nothing. One count belongs to a trainer: `FiniteSteps.of(engine)`.

    Attributes:
        skipped: steps skipped so far, those before a resume included.
        in_a_row: steps skipped since the last one that counted.
    """

    def __init__(self) -> None:
        self.skipped = 0
        self.in_a_row = 0

    @classmethod
    def of(cls, engine: Engine) -> FiniteSteps:
        """The count of this trainer."""
        if not hasattr(engine.state, "finite_steps"):
            engine.state.finite_steps = cls()
        return engine.state.finite_steps

    @property
    def is_last_skipped(self) -> bool:
        """Whether the newest step was skipped."""
        return self.in_a_row > 0

    def count(self, engine: Engine, is_finite: bool, precision: str, limit: int) -> None:
        """Note the outcome of a step; the first skipped one is said in the log.

        Raises:
            NonFiniteError: `limit` steps in a row were skipped.
        """
        if is_finite:
            self.in_a_row = 0
            return
        self.skipped += 1
        self.in_a_row += 1
        where = f"epoch {engine.state.epoch}, step {engine.state.iteration}{_cases(engine.state.batch)}"
        if self.in_a_row >= limit:
            first = "look at these images" if precision == "fp32" else "resume with --precision fp32"
            raise NonFiniteError(
                f"{where}: the loss or gradient was not finite in {self.in_a_row} steps in a row, in {precision}; "
                f"{first}, or lower the learning rate"
            )
        if self.skipped == 1:
            usual = "; usual in fp16 while the scale of the loss settles" if precision == "fp16" else ""
            engine.logger.warning(
                f"{where}: the loss or gradient is not finite in {precision}, the step is skipped{usual}. Further "
                f"skipped steps are counted in history.csv and training.json; {limit} in a row end the training"
            )

    def state_dict(self) -> dict[str, int]:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.skipped, self.in_a_row = state.get("skipped", 0), state.get("in_a_row", 0)


@torch.no_grad()
def all_finite(loss: torch.Tensor, parameters: Iterable[torch.Tensor], norm: torch.Tensor | None = None) -> bool:
    """Whether the loss and every gradient are finite, in every process of a group.

    Args:
        loss: any shape.
        parameters: those without gradient do not count.
        norm: the gradient's norm where it is known already.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients) if norm is None else norm
    if not norm.isfinite():  # squares overflow long before numbers do; the largest one is 13 times slower to find
        norm = torch.nn.utils.get_total_norm(gradients, float("inf"))
    return all_agree(loss.isfinite().all() & norm.isfinite())


def _cases(batch: Any) -> str:
    """The cases of a batch, in brackets; nothing where it does not say."""
    names = batch.get("case") if isinstance(batch, Mapping) else None
    if names is None and isinstance(batch, Mapping):
        names = getattr(batch.get("image"), "meta", {}).get("filename_or_obj")
    if not names:
        return ""
    every = [names] if isinstance(names, str) else list(names)
    return f" ({', '.join(dict.fromkeys(Path(str(name)).name for name in every))})"
