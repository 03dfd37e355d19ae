"""What a training leaves behind: its final weights and how they were made."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from medseg.plan import Plan
from medseg.training.distributed import is_main_process, process_count
from medseg.training.history import numbers
from medseg.training.iteration import FiniteSteps
from medseg.training.precision import PrecisionChoice, resolved
from medseg.versions import software_versions
from medseg.volumes import files
from medseg.volumes.files import file_sha256, set_aside
from medseg.weights.state_dict import save_state

RECORD_NAME = "training.json"
WEIGHTS_NAME = "model.pt"


class TrainingRecord:
    """At the end of a training, write `model.pt` (a plain state dict) and `training.json` (its record) to `output_dir`.

    Args:
        output_dir: the run's folder.
        network: whose weights are the result; the averaged network where there is one.
        plan: the plan trained with; copied beside the weights.
        cases: the training cases, dictionaries of file names; their contents make the data checksum.
        settings: the run's seed, fold and whatever else a reader needs to repeat it.
        evaluator: validation engine whose last metrics belong to the record.
        precision: the training's choice; None takes `settings["precision"]`.
    """

    def __init__(
        self,
        output_dir: str | Path,
        network: torch.nn.Module,
        plan: Plan,
        cases: Sequence[Mapping[str, Any]],
        settings: Mapping[str, Any],
        evaluator: Engine | None = None,
        precision: PrecisionChoice | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.network = network
        self.plan = plan
        self.cases = list(cases)
        self.settings = dict(settings)
        self.evaluator = evaluator
        self.precision = precision or str(self.settings.get("precision", "fp32"))
        self._started = 0.0
        self._first_epoch = 0

    def attach(self, engine: Engine) -> None:
        """Record the training `engine` runs."""
        if not is_main_process():
            return
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        self._started = time.monotonic()
        self._first_epoch = engine.state.epoch
        if self._first_epoch == 0:
            set_aside([self.output_dir / name for name in (WEIGHTS_NAME, RECORD_NAME)])

    def _write(self, engine: Engine) -> None:
        self.output_dir.mkdir(parents=True, exist_ok=True)
        state = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
        save_state(state, self.output_dir / WEIGHTS_NAME)
        record = self._record(engine)
        for name, value in ((RECORD_NAME, record), ("plan.json", self.plan.to_dict())):
            with files.replacing(self.output_dir / name) as temporary:
                Path(temporary).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

    def _record(self, engine: Engine) -> dict[str, Any]:
        device = engine.state.device
        probe = self.precision.probe if isinstance(self.precision, PrecisionChoice) else None
        metrics = self.evaluator.state.metrics if self.evaluator is not None else {}
        return {
            "bundle": self.plan.name,
            "plan_digest": self.plan.digest,
            "weights_sha256": file_sha256(self.output_dir / WEIGHTS_NAME),
            "command": shlex.join(["python", "-m", "monai.bundle", *sys.argv[1:]]),
            "settings": self.settings,
            "epochs": engine.state.epoch,
            "steps": engine.state.iteration,
            "skipped_steps": FiniteSteps.of(engine).skipped,
            "cases": len(self.cases),
            "data_sha256": data_checksum(self.cases),
            "validation": {name: value if math.isfinite(value) else None for name, value in numbers(metrics).items()},
            "processes": process_count(),
            "resumed_at_epoch": self._first_epoch or None,  # then the minutes are those since
            "minutes": round((time.monotonic() - self._started) / 60, 1),
            "precision": resolved(self.precision, device),
            "precision_probe": str(probe) if probe is not None else None,
            "machine": machine(device),
            "versions": software_versions(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }


def data_checksum(cases: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 over the names and contents of every file of the cases, wherever they lie.

    A case's scan and label map often share a name, so the lines are sorted, not the files.
    """
    files = {Path(name) for case in cases for name in _file_names(case)}
    lines = sorted(f"{file.name} {file_sha256(file)}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _file_names(case: Mapping[str, Any]) -> list[str]:
    values = [case[key] for key in ("image", "label", "instances") if key in case]
    return [str(name) for value in values for name in (value if isinstance(value, list | tuple) else [value])]


def machine(device: torch.device) -> str:
    """The processor or GPU a training ran on, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
