"""Write the result of a training: its final weights and the record of how they were trained."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import shlex
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events

from medseg.plan import Plan
from medseg.training.distributed import is_main_process
from medseg.training.history import numbers
from medseg.training.iteration import FiniteSteps
from medseg.versions import software_versions
from medseg.volumes.files import file_sha256, set_aside, staged
from medseg.volumes.formats import file_state
from medseg.weights.state_dict import save_state

RECORD_NAME = "training.json"
WEIGHTS_NAME = "model.pt"
# what a record and the documentation call the folders of a run
_FOLDER_NAMES = {"dataset_dir": "DATA", "output_dir": "RUN", "bundle_root": "."}


class TrainingRecordHandler:
    """At the end of a training, write `model.pt` (a plain state dict) and `training.json` (its record).

    Args:
        output_dir: the run's folder.
        network: the result; the averaged network if there is one.
        plan: the plan of the training; a copy is written beside the weights.
        cases: the training cases, dictionaries of file names. The record has the checksum of their contents.
        settings: the seed, the fold and whatever else a reader needs to repeat the run. Folders are not recorded.
        evaluator: validation engine whose last metrics are recorded; None for none.
        precision: precision of the steps.
    """

    def __init__(
        self,
        output_dir: str | Path,
        network: torch.nn.Module,
        plan: Plan,
        cases: Sequence[Mapping[str, Any]],
        settings: Mapping[str, Any],
        evaluator: Engine | None = None,
        precision: str = "fp32",
    ) -> None:
        self.output_dir = Path(output_dir)
        self.network = network
        self.plan = plan
        self.cases = list(cases)
        self.settings = dict(settings)
        self.evaluator = evaluator
        self.precision = precision
        self._states: dict[Path, tuple[int, ...] | None] = {}
        self._started = 0.0
        self._first_epoch = 0
        self._initial_sha256: str | None = None

    def attach(self, engine: Engine) -> None:
        """Record the training of `engine`."""
        if not is_main_process():
            return
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        self._started = time.monotonic()
        self._first_epoch = engine.state.epoch
        self._states = {file: file_state(file) for file in _files_of(self.cases)}
        initial = self.settings.get("init_weights")
        if initial and Path(initial).is_file():
            self._initial_sha256 = file_sha256(initial)
        if self._first_epoch == 0:
            set_aside([self.output_dir / name for name in (WEIGHTS_NAME, RECORD_NAME)])

    def _write(self, engine: Engine) -> None:
        state = {name: value.detach().cpu().contiguous() for name, value in self.network.state_dict().items()}
        # The record comes last: where it is, the training is finished.
        with staged(self.output_dir / RECORD_NAME) as temporary:
            save_state(state, temporary.with_name(WEIGHTS_NAME))
            record = self._record(engine, file_sha256(temporary.with_name(WEIGHTS_NAME)))
            for file, value in ((temporary, record), (temporary.with_name("plan.json"), self.plan.to_dict())):
                file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

    def _record(self, engine: Engine, weights_sha256: str) -> dict[str, Any]:
        metrics = self.evaluator.state.metrics if self.evaluator is not None else {}
        return {
            "bundle": self.plan.name,
            "plan_digest": self.plan.digest,
            "weights_sha256": weights_sha256,
            "command": recorded_command(sys.argv[1:]),
            "settings": {name: without_folders(value) for name, value in self.settings.items()},
            "initial_weights_sha256": self._initial_sha256,
            "epochs": engine.state.epoch,
            "steps": engine.state.iteration,
            "skipped_steps": FiniteSteps.of(engine).skipped,
            "cases": len(self.cases),
            "data_sha256": self._data_sha256(),
            "validation": {name: value if math.isfinite(value) else None for name, value in numbers(metrics).items()},
            "processes": idist.get_world_size(),
            "resumed_at_epoch": self._first_epoch or None,  # then `minutes` counts from there
            "minutes": round((time.monotonic() - self._started) / 60, 1),
            "precision": self.precision,
            "machine": machine(engine.state.device),
            "versions": software_versions(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }

    def _data_sha256(self) -> str | None:
        """Return the checksum of the training data; None if a file is another one now, or gone."""
        changed = [file for file, state in self._states.items() if state is None or file_state(file) != state]
        if changed:
            more = f" (and {len(changed) - 1} more files)" if len(changed) > 1 else ""
            warnings.warn(
                f"{changed[0]}: was changed or removed during the training{more}; training.json has no data_sha256",
                stacklevel=2,
            )
            return None
        return data_checksum(self.cases)


def recorded_command(arguments: Sequence[str]) -> str:
    """Return the command of a run without the folders of the machine it ran on.

    The data's folder is called DATA and the run's folder RUN, as in the documentation; other absolute paths keep their
    last part, and those of a bundle's configs the part inside the bundle.

    Args:
        arguments: of `python -m monai.bundle`.
    """
    words = ["python", "-m", "monai.bundle"]
    option = ""
    for argument in arguments:
        name, is_joined, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and is_joined:
            words.append(f"--{name}={_FOLDER_NAMES.get(name, without_folders(value))}")
        elif argument.startswith("--"):
            words.append(argument)
        else:
            words.append(_FOLDER_NAMES.get(option, without_folders(argument)))
        option = "" if is_joined or not argument.startswith("--") else name
    return shlex.join(words)


def without_folders(value: Any) -> Any:
    """Shorten each absolute path in a string to its last part, or to its part from `configs/` on."""
    if not isinstance(value, str):
        return value
    return re.sub(r"(?<![\w.~])(?:/|[A-Za-z]:\\)[^'\",\[\]]+", lambda found: _inner_path(found.group()), value)


def _inner_path(path: str) -> str:
    parts = PurePath(path.replace("\\", "/")).parts
    return "/".join(parts[-2:]) if parts[-2:-1] == ("configs",) else parts[-1]


def data_checksum(cases: Sequence[Mapping[str, Any]]) -> str:
    """Return the SHA-256 over the names and contents of the cases' files, independent of their folders.

    The lines are sorted and not the files, because a case's scan and label map often have the same name.
    """
    lines = sorted(f"{file.name} {file_sha256(file)}\n" for file in _files_of(cases))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _files_of(cases: Sequence[Mapping[str, Any]]) -> set[Path]:
    return {Path(name) for case in cases for name in _file_names(case)}


def _file_names(case: Mapping[str, Any]) -> list[str]:
    values = [case[key] for key in ("image", "label", "instances") if key in case]
    return [str(name) for value in values for name in (value if isinstance(value, list | tuple) else [value])]


def machine(device: torch.device) -> str:
    """Describe the processor or GPU a training ran on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
