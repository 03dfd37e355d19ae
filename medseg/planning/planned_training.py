"""Records of a planned training: what was wished for, what it costs, and what was decided and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from medseg.bundle.train_config import TrainingSettings
from medseg.errors import OptionError
from medseg.plan import Plan

NetworkName = Literal["unet", "unet3d", "unetplusplus", "unetr", "residual_encoder"]
NETWORKS: tuple[NetworkName, ...] = ("unet", "unet3d", "unetplusplus", "unetr", "residual_encoder")
# First stage's channels. On a CPU the widest is taken that allows enough steps within the time.
WIDTHS = {"cuda": (32,), "cpu": (24, 16, 12, 8)}
MIN_BATCH = 2
# Part of the time that a training spends on steps; the rest is for loading and validation.
TIME_FOR_STEPS = 0.85


@dataclass(frozen=True)
class Decision:
    """One planned value.

    Args:
        name: of the value, as readers call it.
        value: in words.
        reason: one sentence.
    """

    name: str
    value: str
    reason: str


class Decisions(list[Decision]):
    """The decisions in the order in which they were made, and the warnings."""

    def __init__(self) -> None:
        super().__init__()
        self.warnings: list[str] = []

    def add(self, name: str, value: object, reason: str) -> None:
        """Add a decision."""
        self.append(Decision(name, str(value), reason))

    def warn(self, line: str) -> None:
        """Add a warning."""
        self.warnings.append(line)


@dataclass(frozen=True)
class Wishes:
    """Options of `medseg plan`.

    Args:
        memory: bytes that the training may use: of the process on a CPU, of the device on a GPU.
        device: "cpu" or "cuda".
        hours: time for one training.
        network: form of the network.
        configuration: "3d", or "2d" for a network that segments slices; None follows the data.
    """

    memory: int
    device: Literal["cpu", "cuda"] = "cpu"
    hours: float = 2.0
    network: NetworkName = "unet"
    configuration: Literal["2d", "3d"] | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.hours) and self.hours > 0):
            raise OptionError(f"--hours: found {self.hours}, expected a number above 0")
        if self.network not in NETWORKS:
            raise OptionError(f"--network: found {self.network!r}, expected one of {', '.join(NETWORKS)}")
        if self.device not in WIDTHS:
            raise OptionError(f"--device: found {self.device!r}, expected cpu or cuda")
        if self.configuration not in (None, "2d", "3d"):
            raise OptionError(f"--configuration: found {self.configuration!r}, expected 2d or 3d")


@dataclass(frozen=True)
class Costs:
    """Functions that tell what a training takes; see `medseg.planning.estimate`.

    Args:
        training_bytes: memory of a training of a plan with a batch size, without the cached cases.
        step_seconds: time of one step of a plan with a batch size.
        cached_bytes: memory of all prepared cases of a plan, with or without a weight per voxel.
        step_bytes: size of the tensors of one step of a plan with a batch size.
    """

    training_bytes: Callable[[Plan, int], int]
    step_seconds: Callable[[Plan, int], float]
    cached_bytes: Callable[[Plan, bool], int]
    step_bytes: Callable[[Plan, int], int]


@dataclass(frozen=True)
class PlannedTraining:
    """Result of the rules.

    Args:
        plan: values of the bundle.
        settings: values of its train.json.
        decisions: every value with its reason.
        warnings: one line per value that had to be reduced, or that is unlikely to work well.
    """

    plan: Plan
    settings: TrainingSettings
    decisions: Sequence[Decision]
    warnings: Sequence[str] = field(default_factory=tuple)
