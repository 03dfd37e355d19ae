"""Run one training or validation step of MONAI's supervised engines.

MONAI's own step calls `loss(pred, label)` and uses mixed precision on CUDA only. `SupervisedUpdate` also hands
per-voxel weights to the loss, uses autocast on every device, skips steps that are not finite and averages the weights.
It fires the same events, so every MONAI handler works.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from ignite.engine import Engine
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys as Keys

from medseg.errors import NonFiniteError
from medseg.inference.memory import keep_freed_memory
from medseg.networks.precision import Precision, autocast, has_fast_bf16
from medseg.training.distillation import Teacher
from medseg.training.distributed import all_agree
from medseg.training.network_wrappers import AveragedNetwork

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
Augment = Callable[[dict[str, torch.Tensor], int], dict[str, torch.Tensor]]


class SupervisedUpdate:
    """Steps for MONAI's supervised engines; holds what belongs to all steps of one training.

    Give `train` to a `monai.engines.SupervisedTrainer` as its `iteration_update`, and `evaluate` to a
    `SupervisedEvaluator`. Put the object into checkpoints: its state is the averaged network, the scale of fp16
    gradients and the precision.

    Args:
        network: the network that is trained, without the wrappers of several processes or deep supervision. Its
            averaged copy is validated and kept.
        precision: `auto`, `fp32`, `bf16` or `fp16` (see `resolve_precision`). Losses are computed in fp32 in any case.
        device: where the network runs.
        average_decay: decay of the averaged weights, in [0, 1) (see `AveragedNetwork`); 0 keeps the last weights.
        max_grad_norm: clip the norm of the gradient to this value; None does not clip.
        max_skipped: a step whose loss or gradient is not finite changes no weight and no running statistic and is
            counted (see `FiniteSteps`); this many in a row end the training.
        channels_last: use the channels-last memory format, which is faster for convolutions.
        augment: function of a batch (`image`, `label` and, if there are any, `weight`) on the device and the number of
            the step, which returns the augmented batch (see `BatchAugmentation`); None for none.
        teacher: trained networks whose probabilities are learned beside the labels; None for none.

    Attributes:
        averaged: the averaged network in its wrapper; `averaged.module` is the network.
        precision: the precision in use.
        scaler: scales the gradients of fp16; disabled otherwise.

    Raises:
        ValueError: a precision, decay or number is not valid.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        precision: str = "auto",
        device: torch.device | str = "cpu",
        average_decay: float = 0.0,
        max_grad_norm: float | None = None,
        max_skipped: int = 20,
        channels_last: bool = True,
        augment: Augment | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        if max_skipped < 1:
            raise ValueError(f"max_skipped must be at least 1, found {max_skipped}")
        self.network = network
        self.averaged = AveragedNetwork(network, average_decay)
        self.device = torch.device(device)
        self.max_grad_norm = max_grad_norm
        self.max_skipped = max_skipped
        self.channels_last = channels_last
        self.augment = augment
        self.teacher = teacher
        self._is_auto = precision == "auto"
        self._keeps_memory = False
        self._set_precision(resolve_precision(precision, self.device))

    def _set_precision(self, precision: Precision) -> None:
        self.precision = precision
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")

    def train(self, engine: SupervisedTrainer, batch: dict[str, Any]) -> dict[str, Any]:
        """Take one step of the optimiser.

        Args:
            engine: its network may be wrapped.
            batch: `image` (B, C, …), `label` (B, 1, …) and optionally `weight` (B, 1, …), the weight of each voxel,
                which the loss gets as its third argument.

        Returns:
            `image`, `label`, `pred` and `loss`, as MONAI's step does.

        Raises:
            NonFiniteError: `max_skipped` steps in a row were not finite.
        """
        if not self._keeps_memory:
            self._keeps_memory = True
            keep_freed_memory(True)
        moved = {key: _moved(batch, key, engine) for key in (Keys.IMAGE, Keys.LABEL)}
        if "weight" in batch:
            moved["weight"] = _moved(batch, "weight", engine)
        if self.augment is not None:
            moved = self.augment(moved, engine.state.iteration)
        image, label = moved[Keys.IMAGE], moved[Keys.LABEL]
        # the loss needs numbers without geometry: plain tensors save MetaTensor's bookkeeping at every operation
        inputs = as_network_input(image, self.channels_last)
        targets = label.as_subclass(torch.Tensor)
        weight = [moved["weight"].as_subclass(torch.Tensor)] if "weight" in moved else []
        engine.state.output = {Keys.IMAGE: image, Keys.LABEL: label}

        engine.network.train()
        engine.optimizer.zero_grad(set_to_none=True)
        statistics = [(buffer, buffer.clone()) for buffer in engine.network.buffers()]
        with autocast(engine.state.device, self.precision):
            engine.state.output[Keys.PRED] = engine.inferer(inputs, engine.network)
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        loss = engine.loss_function(engine.state.output[Keys.PRED], targets, *weight)
        if self.teacher is not None:
            loss = self.teacher.mix(loss, engine.state.output[Keys.PRED], inputs, self.precision)
        engine.state.output[Keys.LOSS] = loss
        engine.fire_event(IterationEvents.LOSS_COMPLETED)
        self.scaler.scale(engine.state.output[Keys.LOSS]).backward()
        engine.fire_event(IterationEvents.BACKWARD_COMPLETED)
        is_finite = self._move_weights(engine)
        if is_finite:
            self.averaged.update_parameters(self.network)
        else:
            engine.optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                for buffer, before in statistics:
                    buffer.copy_(before)
        FiniteSteps.of(engine).count(engine, is_finite, self.precision, self.max_skipped)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def evaluate(self, engine: SupervisedEvaluator, batch: dict[str, Any]) -> dict[str, Any]:
        """Predict one batch in the precision of the training.

        Args:
            engine: its inferer predicts the whole image.
            batch: `image` (B, C, …) and optionally `label`, passed through.

        Returns:
            `image`, `label` and `pred`. The prediction carries the image's geometry, so that it can be restored to the
            scan's grid.
        """
        image = _moved(batch, Keys.IMAGE, engine)
        engine.state.output = {Keys.IMAGE: image}
        if Keys.LABEL in batch:
            engine.state.output[Keys.LABEL] = _moved(batch, Keys.LABEL, engine)
        with engine.mode(engine.network), autocast(engine.state.device, self.precision):
            engine.state.output[Keys.PRED] = engine.inferer(image, engine.network)
        engine.fire_event(IterationEvents.FORWARD_COMPLETED)
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def _move_weights(self, engine: SupervisedTrainer) -> bool:
        """Let the optimiser move the weights if the loss and the gradient are finite; return whether they were."""
        self.scaler.unscale_(engine.optimizer)
        parameters, norm = list(engine.network.parameters()), None
        if self.max_grad_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        is_finite = all_finite(engine.state.output[Keys.LOSS].detach(), parameters, norm)
        if is_finite:
            self.scaler.step(engine.optimizer)
        self.scaler.update()
        return is_finite

    def state_dict(self) -> dict[str, Any]:
        """Return plain data and tensors for a checkpoint."""
        return {
            "averaged": self.averaged.state_dict(),
            "scaler": self.scaler.state_dict(),
            "precision": self.precision,
            "device": self.device.type,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, in its precision if the user asked for `auto` on the same kind of device."""
        if self._is_auto and state["device"] == self.device.type:
            self._set_precision(state["precision"])
        self.averaged.load_state_dict(state["averaged"])
        if self.scaler.is_enabled() and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])


def resolve_precision(precision: str, device: torch.device | str) -> Precision:
    """Turn `auto` into a precision that is fast on the device.

    Args:
        precision: `auto`, `fp32`, `bf16` or `fp16`. `auto` is bf16 if the device multiplies it in hardware (AMX or
            AVX512-BF16 on x86 CPUs, Ampere or later on CUDA), fp16 with a gradient scaler on older CUDA devices, and
            fp32 otherwise. Several processes on CPUs use bf16 only if the CPU of each of them multiplies it.
        device: where the network runs.

    Raises:
        ValueError: the name is not one of the four.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be auto, fp32, bf16 or fp16, found {precision!r}")
    if precision != "auto":
        return cast(Precision, precision)
    kind = torch.device(device).type
    if kind == "cuda":
        return "bf16" if has_fast_bf16(device) else "fp16"
    return "bf16" if all_agree(torch.tensor(has_fast_bf16(device), device=device)) else "fp32"


class FiniteSteps:
    """Count the steps of a training that were skipped because they would have put NaN or infinity into the weights.

    Diverging trainings are one cause of such steps. Libraries are another: oneDNN's bf16 kernels can read
    uninitialised memory in the padding, which may hold a NaN (seen with torch 2.13 in the gradient of 3D convolutions
    on maps that are two voxels deep; on AMX github.com/uxlfoundation/oneDNN/issues/5717). One such step ruins all
    weights, and a skipped one costs nothing. There is one count per trainer: `FiniteSteps.of(engine)`.

    Attributes:
        skipped: steps skipped so far, including those before a resume.
        in_a_row: steps skipped since the last finite one.
    """

    def __init__(self) -> None:
        self.skipped = 0
        self.in_a_row = 0

    @classmethod
    def of(cls, engine: Engine) -> FiniteSteps:
        """Return the count of this trainer."""
        if not hasattr(engine.state, "finite_steps"):
            engine.state.finite_steps = cls()
        return engine.state.finite_steps

    @property
    def is_last_skipped(self) -> bool:
        """True if the newest step was skipped."""
        return self.in_a_row > 0

    def count(self, engine: Engine, is_finite: bool, precision: str, limit: int) -> None:
        """Count a step; the log reports the first skipped one.

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
            remedy = "check these images" if precision == "fp32" else "resume with --precision fp32"
            raise NonFiniteError(
                f"{where}: the loss or the gradient was not finite in {self.in_a_row} steps in a row, in {precision}; "
                f"{remedy}, or lower the learning rate"
            )
        if self.skipped == 1:
            usual = "; usual in fp16 while the scale of the loss settles" if precision == "fp16" else ""
            engine.logger.warning(
                f"{where}: the loss or the gradient is not finite in {precision}, so this step is skipped{usual}. "
                f"history.csv and training.json count further ones; {limit} in a row end the training"
            )

    def state_dict(self) -> dict[str, int]:
        """Return the counts for a checkpoint."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue the counts of a checkpoint."""
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]


@torch.no_grad()
def all_finite(loss: torch.Tensor, parameters: Iterable[torch.Tensor], norm: torch.Tensor | None = None) -> bool:
    """Return True if the loss and every gradient are finite in every process of the group.

    Args:
        loss: any shape.
        parameters: those without a gradient are ignored.
        norm: norm of the gradient, if it is known already.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients) if norm is None else norm
    if not norm.isfinite():  # squares overflow before numbers do; the largest number takes 13 times as long to find
        norm = torch.nn.utils.get_total_norm(gradients, float("inf"))
    return all_agree(loss.isfinite().all() & norm.isfinite())


def _cases(batch: Any) -> str:
    """Return the names of a batch's cases in brackets; an empty string if it has none."""
    names = batch.get("case") if isinstance(batch, Mapping) else None
    if names is None and isinstance(batch, Mapping):
        names = getattr(batch.get("image"), "meta", {}).get("filename_or_obj")
    if not names:
        return ""
    every = [names] if isinstance(names, str) else list(names)
    return f" ({', '.join(dict.fromkeys(Path(str(name)).name for name in every))})"


def as_network_input(image: torch.Tensor, channels_last: bool) -> torch.Tensor:
    """Return (B, C, H, W[, D]) as a plain tensor in the wanted memory format."""
    plain = image.as_subclass(torch.Tensor)
    if not channels_last:
        return plain
    return plain.contiguous(memory_format=torch.channels_last_3d if plain.ndim == 5 else torch.channels_last)


def _moved(batch: dict[str, Any], key: str, engine: Any) -> torch.Tensor:
    return batch[key].to(engine.state.device, non_blocking=engine.non_blocking)
