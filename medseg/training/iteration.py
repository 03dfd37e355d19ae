"""One training or validation step for MONAI's supervised engines, with voxel weights and CPU bf16.

MONAI's own step calls `loss(pred, label)` and knows mixed precision on CUDA alone; these two hand the voxel weights
on and use autocast on whichever device the engine has. They fire the same events, so every MONAI handler works.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys as Keys
from torch.nn.parallel import DistributedDataParallel

from medseg.errors import NonFiniteError
from medseg.networks.precision import Precision, autocast
from medseg.training.distributed import all_agree, is_main_process
from medseg.training.precision import PrecisionChoice, resolved


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


# of mallopt(3) in glibc
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
MOST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have the C library keep freed blocks of any size for the next step, for the rest of the process.

    Every step needs the same blocks. glibc gives the large ones back at once, and the system fills each with zeros
    when it is asked for again: 6 to 8 % of a step of a 3D U-Net on a CPU.

    Returns:
        Whether this C library can be told so; where not, nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):  # not in other C libraries than glibc
        return False
    return bool(library.mallopt(M_MMAP_THRESHOLD, MOST) and library.mallopt(M_TRIM_THRESHOLD, MOST))


Augment = Callable[[dict[str, torch.Tensor], int], dict[str, torch.Tensor]]


def _moved(batch: dict[str, Any], key: str, engine: Any) -> torch.Tensor:
    return batch[key].to(engine.state.device, non_blocking=engine.non_blocking)


class TrainingUpdate:
    """`iteration_update` of a `monai.engines.SupervisedTrainer`: `loss(logits, label, weight)` and one optimiser step.

    Making one has the process keep freed memory from then on (see `keep_freed_memory`).

    The batch holds `image` (B, C, …) and `label` (B, 1, …), and may hold `weight` (B, 1, …), a voxel weight map that
    reaches the loss as its third argument.

    Args:
        precision: `auto`, `fp32`, `bf16` or `fp16` (see `resolve_precision`), or a `PrecisionChoice`, whose `auto` the
            first step decides by a probe. The loss is computed in fp32 in any case.
        channels_last: lay images out channels last, which CPUs' and GPUs' convolutions prefer.
        max_grad_norm: clip the gradient's norm to this value; None leaves it alone.
        scaler: scales fp16 gradients (see `gradient_scaler`); None for none. Checkpoint it.
        max_skipped: a step whose loss or gradient is not finite changes no weight and no running statistic and is
            counted (`FiniteSteps`); so many in a row end the training.
        augment: changes the batch on the engine's device, given image, label and weight, if any, and the number of the
            step, which is all its randomness may depend on (see `BatchAugmentation`); None for none.

    Returns (the call): `image, label, pred, loss` as MONAI's step does.
    """

    def __init__(
        self,
        precision: str | PrecisionChoice = "auto",
        channels_last: bool = True,
        max_grad_norm: float | None = None,
        scaler: torch.amp.GradScaler | None = None,
        max_skipped: int = 20,
        augment: Augment | None = None,
    ) -> None:
        if max_skipped < 1:
            raise ValueError(f"max_skipped must be at least 1, found {max_skipped}")
        self.precision = precision
        self.max_skipped = max_skipped
        self.augment = augment
        self.channels_last = channels_last
        self.max_grad_norm = max_grad_norm
        self.scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
        keep_freed_memory()

    def __call__(self, engine: SupervisedTrainer, batch: dict[str, Any]) -> dict[str, Any]:
        moved = {key: _moved(batch, key, engine) for key in (Keys.IMAGE, Keys.LABEL)}
        if "weight" in batch:
            moved["weight"] = _moved(batch, "weight", engine)
        if self.augment is not None:
            moved = self.augment(moved, engine.state.iteration)
        image, label = moved[Keys.IMAGE], moved[Keys.LABEL]
        # the loss needs numbers, not geometry: plain tensors spare MetaTensor's bookkeeping at every operation
        inputs = as_network_input(image, self.channels_last)
        targets = label.as_tensor() if hasattr(label, "as_tensor") else label
        weight = [moved["weight"].as_subclass(torch.Tensor)] if "weight" in moved else []
        engine.state.output = {Keys.IMAGE: image, Keys.LABEL: label}

        engine.network.train()
        engine.optimizer.zero_grad(set_to_none=True)
        precision = self._precision(engine, inputs, targets, weight)
        statistics = [(buffer, buffer.clone()) for buffer in engine.network.buffers()]
        with autocast(engine.state.device, precision):
            engine.state.output[Keys.PRED] = engine.inferer(inputs, engine.network)
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.state.output[Keys.LOSS] = engine.loss_function(engine.state.output[Keys.PRED], targets, *weight)
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        self.scaler.scale(engine.state.output[Keys.LOSS]).backward()
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        is_finite = self._step(engine)
        if not is_finite:
            engine.optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                for buffer, before in statistics:
                    buffer.copy_(before)
        FiniteSteps.of(engine).count(engine, is_finite, precision, self.max_skipped)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def _precision(self, engine: SupervisedTrainer, inputs: torch.Tensor, *rest: Any) -> Precision:
        """The precision of this step; the first one of a training may have to find it out."""
        if isinstance(self.precision, PrecisionChoice) and self.precision.is_open:
            # what is inside the wrappers of torch.compile and of many processes: neither may see steps of one process
            network = getattr(engine.network, "_orig_mod", engine.network)
            network = network.module if isinstance(network, DistributedDataParallel) else network
            targets, weight = rest

            def step() -> tuple[torch.Tensor | list[torch.Tensor], torch.Tensor]:
                logits = engine.inferer(inputs, network)
                with torch.autocast(inputs.device.type, enabled=False):
                    return logits, engine.loss_function(logits, targets, *weight)

            decision = self.precision.decide(network, step)
            if is_main_process():
                engine.logger.info(decision)
        return resolved(self.precision, engine.state.device)

    def _step(self, engine: SupervisedTrainer) -> bool:
        """Move the weights if the loss and the gradient are finite, and say whether they were."""
        self.scaler.unscale_(engine.optimizer)
        parameters, norm = list(engine.network.parameters()), None
        if self.max_grad_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        is_finite = all_finite(engine.state.output[Keys.LOSS].detach(), parameters, norm)
        if is_finite:
            self.scaler.step(engine.optimizer)
        self.scaler.update()
        return is_finite


class EvaluationUpdate:
    """`iteration_update` of a `monai.engines.SupervisedEvaluator` with autocast on CPUs as well.

    The prediction carries the image's geometry, so that it can be restored to the scan's native grid.

    Args:
        precision: `auto`, `fp32`, `bf16` or `fp16` (see `resolve_precision`), or the training's `PrecisionChoice`.
    """

    def __init__(self, precision: str | PrecisionChoice = "fp32") -> None:
        self.precision = precision

    def __call__(self, engine: SupervisedEvaluator, batch: dict[str, Any]) -> dict[str, Any]:
        image = _moved(batch, Keys.IMAGE, engine)
        engine.state.output = {Keys.IMAGE: image}
        if Keys.LABEL in batch:
            engine.state.output[Keys.LABEL] = _moved(batch, Keys.LABEL, engine)
        precision = resolved(self.precision, engine.state.device)
        with engine.mode(engine.network), autocast(engine.state.device, precision):
            engine.state.output[Keys.PRED] = engine.inferer(image, engine.network)
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output


def as_network_input(image: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """A plain tensor in the wanted memory format, from a tensor or MetaTensor of (B, C, H, W[, D])."""
    plain = image.as_subclass(torch.Tensor)
    if not channels_last:
        return plain
    return plain.contiguous(memory_format=torch.channels_last_3d if plain.ndim == 5 else torch.channels_last)
