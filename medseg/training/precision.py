"""Which arithmetic a training step uses on the machine at hand."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
import torch.distributed

from medseg.networks.precision import Precision, autocast, has_fast_bf16
from medseg.training.distributed import all_agree, is_in_group, is_main_process, process_count
from medseg.training.sampling import RandomStates

NAMES = ("auto", "fp32", "bf16", "fp16")


def resolve_precision(precision: str, device: torch.device | str) -> Precision:
    """Turn `auto` into the precision the device computes convolutions in natively.

    Args:
        precision: `auto`, `fp32`, `bf16` or `fp16`. `auto` means bf16 where the processor multiplies it in hardware
            (AMX or AVX512-BF16 on CPUs, Ampere or later on CUDA), since emulated bf16 is slower than fp32; else fp16 on
            CUDA, whose gradients need scaling (`gradient_scaler`), and fp32 elsewhere.
        device: where the network runs.

    Raises:
        ValueError: the name is not one of the four.
    """
    if precision not in NAMES:
        raise ValueError(f"precision must be auto, fp32, bf16 or fp16, found {precision!r}")
    if precision != "auto":
        return cast(Precision, precision)
    kind = torch.device(device).type
    if has_fast_bf16(device):
        return "bf16"
    return "fp16" if kind == "cuda" else "fp32"


def gradient_scaler(precision: str, device: torch.device | str) -> torch.amp.GradScaler:
    """The scaler that keeps fp16 gradients from vanishing; it does nothing in other precisions, which do not need it.

    Args:
        precision: as in `resolve_precision`.
        device: where the network runs.
    """
    return torch.amp.GradScaler(torch.device(device).type, enabled=resolve_precision(precision, device) == "fp16")


Step = Callable[[], tuple[torch.Tensor | list[torch.Tensor], torch.Tensor]]

MIN_GAIN = 1.05
MAX_LOGIT_ERROR = 0.1
MIN_GRADIENT_COSINE = 0.9
ROUNDS = 3
MAX_SECONDS = 5.0


@dataclass(frozen=True)
class PrecisionProbe:
    """What one training step takes in either precision, and how far the results are apart.

    Attributes:
        fp32_seconds, bf16_seconds: medians.
        is_finite: whether bf16's loss, logits and gradients are.
        logit_error: ‖bf16 − fp32‖ / ‖fp32‖ over all logits.
        gradient_cosine: between the gradients of either, over all parameters, in [−1, 1].
    """

    fp32_seconds: float
    bf16_seconds: float
    is_finite: bool
    logit_error: float
    gradient_cosine: float

    @property
    def agrees(self) -> bool:
        """Whether bf16 computes the same but for rounding (typically 0.01 and 0.99)."""
        return self.is_finite and self.logit_error <= MAX_LOGIT_ERROR and self.gradient_cosine >= MIN_GRADIENT_COSINE

    @property
    def precision(self) -> Precision:
        """The faster one; fp32 where bf16 gains nothing worth its rounding or is wrong."""
        return "bf16" if self.agrees and self.bf16_seconds * MIN_GAIN <= self.fp32_seconds else "fp32"

    def __str__(self) -> str:
        times = f"a step takes {self.bf16_seconds:.3g} s in bf16, {self.fp32_seconds:.3g} s in fp32"
        if not self.is_finite:
            return f"{times}, but bf16 gives NaN or infinity on this processor"
        apart = f"logits differ by {self.logit_error:.2%}, the gradients' cosine is {self.gradient_cosine:.3f}"
        return f"{times}; {apart}" + ("" if self.agrees else ", which is more than rounding")


class PrecisionChoice:
    """The precision of a training, the same in training and validation, decided once and kept in checkpoints.

    `auto` on a CPU that multiplies bf16 in hardware is decided by the first training step (`TrainingUpdate`): the
    actual network on the actual batch, a step in fp32 and in bf16 a few times over, without moving a weight, a running
    statistic or a random state. Among several processes the first one decides for all, and one whose processor lacks
    bf16 decides for fp32. Elsewhere `auto` is what `resolve_precision` says. A resumed training goes on in the
    precision of its checkpoint, unless another is named.

    Args:
        precision: `auto`, `fp32`, `bf16` or `fp16`.
        device: where the network runs.

    Raises:
        ValueError: the name is not one of the four.
    """

    def __init__(self, precision: str, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.probe: PrecisionProbe | None = None
        self._static = resolve_precision(precision, self.device)
        self._is_auto = precision == "auto"
        # a group has one answer, although its machines may differ
        self._is_open = self._is_auto and self.device.type == "cpu" and (has_fast_bf16() or process_count() > 1)

    @property
    def precision(self) -> Precision:
        """The precision as far as it is decided; before a probe what the processor promises."""
        return self._static

    @property
    def is_open(self) -> bool:
        """Whether a probe has still to decide."""
        return self._is_open

    def decide(self, network: torch.nn.Module, step: Step) -> str:
        """Probe, in the first process of a group, and settle on the answer.

        Args:
            network: whose gradients, running statistics and mode are as before afterwards.
            step: forward pass and loss of one training step, returning logits and loss; called inside autocast.

        Returns:
            What was decided and why, in one line.
        """
        if not all_agree(torch.tensor(has_fast_bf16())):
            self._static, self._is_open = "fp32", False
            return "precision auto: fp32 (not every process has a processor that multiplies bf16)"
        found = [probe_step(network, step, self.device) if is_main_process() else None]
        if is_in_group():
            torch.distributed.broadcast_object_list(found)
        (self.probe,) = found
        self._static = "fp32" if self.probe is None else self.probe.precision
        self._is_open = False
        return f"precision auto: {self._static} ({self.probe})"

    def state_dict(self) -> dict[str, Any]:
        measured = None if self.probe is None else asdict(self.probe)
        return {"precision": self._static, "device": self.device.type, "probe": measured}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the checkpoint's choice where the user left it open, on the same kind of device."""
        if not self._is_auto or state["device"] != self.device.type:
            return
        self._static, self._is_open = state["precision"], False
        self.probe = None if state["probe"] is None else PrecisionProbe(**state["probe"])


def resolved(precision: str | PrecisionChoice, device: torch.device | str) -> Precision:
    """The precision a name or a choice stands for on a device."""
    return precision.precision if isinstance(precision, PrecisionChoice) else resolve_precision(precision, device)


def probe_step(network: torch.nn.Module, step: Step, device: torch.device) -> PrecisionProbe:
    """Time and compare a step in fp32 and bf16; nothing of the network or of the random generators is changed."""
    seconds: dict[Precision, list[float]] = {"fp32": [], "bf16": []}
    results: dict[Precision, tuple[torch.Tensor, torch.Tensor, bool]] = {}
    started = time.perf_counter()
    for turn in range(1 + ROUNDS):
        for precision in seconds:
            with _untouched(network):
                before = time.perf_counter()
                with autocast(device, precision):
                    logits, loss = step()
                loss.backward()
                seconds[precision].append(time.perf_counter() - before)
                if turn == 0:
                    results[precision] = _flat(logits), _gradient(network), bool(loss.isfinite())
        if time.perf_counter() - started > MAX_SECONDS:
            break
    # the first of each prepares kernels and memory; it counts only where a step is so long that there is no other
    medians = {name: statistics.median(times[1:] or times) for name, times in seconds.items()}
    (exact, exact_gradient, _), (rounded, gradient, is_finite) = results["fp32"], results["bf16"]
    error = float((rounded - exact).norm() / exact.norm().clamp_min(1e-12))
    cosine = float(torch.nn.functional.cosine_similarity(exact_gradient, gradient, 0, eps=1e-30))
    is_finite = is_finite and bool(rounded.isfinite().all()) and bool(gradient.isfinite().all())
    return PrecisionProbe(medians["fp32"], medians["bf16"], is_finite, error, cosine)


@contextmanager
def _untouched(network: torch.nn.Module) -> Iterator[None]:
    """Put running statistics and random states back, and leave no gradient."""
    random_states, generators = RandomStates(), RandomStates().state_dict()
    statistics_before = [(buffer, buffer.clone()) for buffer in network.buffers()]
    network.zero_grad(set_to_none=True)
    try:
        yield
    finally:
        random_states.load_state_dict(generators)
        network.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, before in statistics_before:
                buffer.copy_(before)


def _flat(logits: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
    every = logits if isinstance(logits, list | tuple) else [logits]
    return torch.cat([item.detach().float().flatten() for item in every])


def _gradient(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.float().flatten() for p in network.parameters() if p.grad is not None])
