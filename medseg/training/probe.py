"""Measure what a bundle's training costs by running its own workflow for a few steps with a few cases.

`medseg.training.train` starts this module as a process of its own, so that memory is measured as well and everything is
released afterwards: `python -m medseg.training.probe REQUEST`, alone or under torchrun.
"""

from __future__ import annotations

import gc
import itertools
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser, ConfigWorkflow

from medseg.errors import OptionError
from medseg.training.checkpoint import checkpoint_files
from medseg.training.monai_run import show_one_line_errors
from medseg.training.run_options import typed_options
from medseg.training.time_budget import Costs
from medseg.training.training_cases import MappedCases
from medseg.volumes.files import read_json, replacing

# Steps of one epoch of the probe; several short epochs show what an epoch costs beyond its steps.
EPOCH_STEPS = 8
MIN_EPOCHS = 3
# Below this share of a step, drawing samples in the training's own process is not worth a worker process.
SMALL_SHARE = 0.05
# A worker process must save this share of an epoch.
WORTHWHILE = 0.03
# One validation case that takes longer than this is not measured a second time.
LONG_VALIDATION_SECONDS = 10.0
_MANY = 1_000_000
_PARTS = ("train", "validate")


@dataclass
class EngineTimes:
    """Times of a trainer's run in seconds.

    Args:
        steps: one per step, from the end of the step before, within an epoch.
        samples: one per batch: how long the trainer waited for it. The first of each epoch is left out.
        epochs: what each epoch took beyond its steps, by number of the epoch.
        validation: the last validation.
        validation_cases: the part of `validation` spent on its cases.
    """

    steps: list[float] = field(default_factory=list)
    samples: list[float] = field(default_factory=list)
    epochs: dict[int, float] = field(default_factory=dict)
    validation: float = 0.0
    validation_cases: float = 0.0

    @property
    def step_seconds(self) -> float:
        """Mean of a step with its samples."""
        return fmean(self.steps)

    @property
    def sample_seconds(self) -> float:
        """Mean wait for a batch."""
        return fmean(self.samples) if self.samples else 0.0

    @property
    def epoch_seconds(self) -> float:
        """Return the seconds beyond the steps of an epoch without a checkpoint, which is every odd one of the probe."""
        without = [took for epoch, took in self.epochs.items() if epoch % 2]
        return max(0.0, fmean(without)) if without else 0.0

    @property
    def checkpoint_seconds(self) -> float:
        """Return the seconds that saving a checkpoint takes."""
        with_one = [took for epoch, took in self.epochs.items() if epoch % 2 == 0]
        return max(0.0, fmean(with_one) - self.epoch_seconds) if with_one else 0.0

    def validation_seconds(self, scale: float) -> float:
        """Return the seconds of a validation with `scale` times as many cases."""
        return self.validation + (scale - 1) * self.validation_cases


class ProbeHandler:
    """Measure a MONAI trainer and end its run as soon as enough was measured.

    The first epoch warms up (memory, kernels, files) and is not counted. After the last one, the evaluator runs twice,
    and the second run is measured.

    Args:
        evaluator: validation engine; None for none.
        seconds: how long to measure, at least; a run whose steps take long ends after three times as long.
        clock: returns seconds.
    """

    def __init__(
        self, evaluator: Engine | None, seconds: float, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.evaluator = evaluator
        self.seconds = seconds
        self.clock = clock
        self.times = EngineTimes()
        self.started = self.ended = 0.0
        self._epoch_start = self._batch_start = 0.0
        self._batches: list[float] = []
        self._completed: list[float] = []

    def attach(self, engine: Engine) -> None:
        """Measure `engine`, a MONAI trainer to which all other handlers are attached."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._start_batch)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._end_batch)

    def _start(self, engine: Engine) -> None:
        # added only now, so that they run after every other handler, checkpoints included
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._end_step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)
        self.started = self._epoch_start = self.clock()

    def _start_batch(self, engine: Engine) -> None:
        self._batch_start = self.clock()

    def _end_batch(self, engine: Engine) -> None:
        self._batches.append(self.clock() - self._batch_start)

    def _end_step(self, engine: Engine) -> None:
        if engine.state.device is not None and torch.device(engine.state.device).type == "cuda":
            torch.cuda.synchronize()
        self._completed.append(self.clock())
        is_slow = len(self._completed) > 2 and self._longest(self._completed[-1] - self.started) > 3 * self.seconds
        if is_slow and not self.times.steps:
            self._take(engine, is_whole=False)
            self._finish(engine)

    def _end_epoch(self, engine: Engine) -> None:
        if engine.should_terminate:
            return
        if engine.state.epoch > 1:
            self._take(engine, is_whole=True)
        self._batches, self._completed = [], []
        is_enough = engine.state.epoch >= MIN_EPOCHS
        if is_enough and self._longest(self.clock() - self.started) >= self.seconds:
            self._finish(engine)
        self._epoch_start = self.clock()

    def _take(self, engine: Engine, is_whole: bool) -> None:
        ends = self._completed
        steps = [after - before for before, after in itertools.pairwise(ends)]
        total = self.clock() - self._epoch_start
        self.times.steps += steps or [total]
        self.times.samples += self._batches[1 : len(ends)]
        if is_whole:
            self.times.epochs[engine.state.epoch] = total - len(ends) * fmean(steps) if steps else 0.0

    def _finish(self, engine: Engine) -> None:
        if self.evaluator is not None:
            self._validate(engine)
            if self._longest(self.times.validation) < LONG_VALIDATION_SECONDS:
                self._validate(engine)
        engine.terminate()
        self.ended = self.clock()

    def _validate(self, engine: Engine) -> None:
        assert self.evaluator is not None
        self.times.validation_cases = 0.0
        marks: list[float] = []
        started, ended = (
            self.evaluator.add_event_handler(event, lambda: marks.append(self.clock()))
            for event in (Events.GET_BATCH_STARTED, Events.ITERATION_COMPLETED)
        )
        before = self.clock()
        # as MONAI's ValidationHandler does
        self.evaluator.run(engine.state.epoch)
        self.times.validation = self.clock() - before
        started.remove(), ended.remove()
        if marks:
            self.times.validation_cases = marks[-1] - marks[0]

    @staticmethod
    def _longest(seconds: float) -> float:
        """Return the longest time of all processes, so that they decide alike."""
        return float(idist.all_reduce(seconds, "MAX")) if idist.get_world_size() > 1 else seconds


def measure(options: Mapping[str, str], out_dir: Path, seconds: float, launched: float) -> Costs:
    """Run a training for a few steps with a few of its cases, and measure it.

    If the options name no `num_workers`, it is chosen: none if drawing samples takes little of a step; else enough to
    draw them while the network computes, if that was measured to be faster.

    Args:
        options: text of the options of `python -m monai.bundle run`, by name.
        out_dir: folder for what the workflow writes.
        seconds: how long to measure each setting, at least.
        launched: when this process was started, as `time.time` counts.

    Raises:
        MedsegError: the workflow cannot run.
    """
    values = {"num_workers": 0, **typed_options(options), "resume": False, "max_epochs": _MANY}
    values["output_dir"] = str(out_dir)
    workflow = ConfigWorkflow(workflow_type="train", **values)
    workflow.initialize()
    rehearsal = _Rehearsal(workflow.parser, out_dir, seconds, launched)
    costs = rehearsal.run(int(values["num_workers"]))
    sample = costs.sample_seconds
    if "num_workers" not in options and sample > SMALL_SHARE * costs.step_seconds:
        compute = max(costs.step_seconds - sample, 1e-6)
        workers = min(math.ceil(sample / compute), max(1, _cores() // idist.get_world_size()))
        gc.collect()
        other = rehearsal.run(workers)
        # a short epoch may live on the batches that were drawn before its first step
        other = replace(other, step_seconds=max(other.step_seconds, sample / workers), sample_seconds=sample)
        if _epoch(other) < (1 - WORTHWHILE) * _epoch(costs):
            costs = other
    workflow.finalize()
    return costs


class _Rehearsal:
    """A training's config with a few of its cases, which is run with different numbers of workers."""

    def __init__(self, parser: ConfigParser, out_dir: Path, seconds: float, launched: float) -> None:
        self.parser, self.out_dir, self.seconds, self.launched = parser, out_dir, seconds, launched
        self.world = idist.get_world_size()
        self.batch = int(parser.get_parsed_content("train#dataloader#batch_size"))
        self.checkpoint_interval = int(parser.get_parsed_content("checkpoint_interval"))
        every = {part: list(parser.get_parsed_content(f"{part}#dataset#data")) for part in _PARTS}
        self.numbers = {part: len(cases) for part, cases in every.items()}
        self.few = {
            "train": _spread(every["train"], max(4, 2 * self.batch * self.world)),
            "validate": _spread(every["validate"], 2 * self.world),
        }
        self.steps = math.ceil(math.ceil(self.numbers["train"] / self.world) / self.batch)
        loader, parser["train#dataloader"] = parser["train#dataloader"], range(self.steps)
        parser.parse(reset=True)  # a recipe computes its interval from the number of all steps
        self.validation_interval = max(1, int(parser.get_parsed_content("val_interval")))
        parser["train#dataloader"] = loader
        self.validates_epochs = True
        validation = "train#named_handlers#validation"
        if validation in parser:
            self.validates_epochs = bool(parser[validation].get("epoch_level", True))
            parser[f"{validation}#_disabled_"] = True
        parser["checkpoint_interval"] = 2  # so that epochs with and without a checkpoint are measured
        if "CacheDataset" in str(parser["train#dataset#_target_"]):
            parser["train#dataset#hash_as_key"] = True  # keep one copy of a case that is there several times
        parser["validate#dataset#data"] = self.few["validate"]
        parser["train#dataset#data"] = self.few["train"][:1]
        parser.parse(reset=True)
        parser.get_parsed_content("train#dataset")  # the first case takes longer, because it imports its reader
        length = min(self.numbers["train"], EPOCH_STEPS * self.batch * self.world)
        parser["train#dataset#data"] = [self.few["train"][n % len(self.few["train"])] for n in range(length)]
        self._fixed_start: float | None = None

    def run(self, num_workers: int) -> Costs:
        """Run the training with that many workers and return what the whole training costs."""
        parser, folder = self.parser, self.out_dir / str(num_workers)
        parser["output_dir"], parser["num_workers"] = str(folder), num_workers
        parser.parse(reset=True)
        datasets, loading = {}, {}
        for part in _PARTS:
            before = time.perf_counter()
            datasets[part] = parser.get_parsed_content(f"{part}#dataset")
            loading[part] = time.perf_counter() - before
        trainer = parser.get_parsed_content("train#trainer")
        probe = ProbeHandler(parser.get_parsed_content("validate#evaluator"), self.seconds)
        probe.attach(trainer)
        trainer.run()
        end_seconds = time.perf_counter() - probe.ended
        if self._fixed_start is None:
            since_launch = time.time() - self.launched - (time.perf_counter() - probe.started)
            self._fixed_start = since_launch - sum(loading.values())
        scale = {part: self.numbers[part] / max(1, len(self.few[part])) for part in _PARTS}
        case_bytes = {part: _cached_bytes(datasets[part]) for part in _PARTS}
        is_mapped = isinstance(datasets["train"], MappedCases)
        cached = round(sum(scale[part] * case_bytes[part] for part in _PARTS))
        times = probe.times
        return Costs(
            num_workers=num_workers,
            num_cases=self.numbers["train"],
            num_validation_cases=self.numbers["validate"],
            steps_per_epoch=self.steps,
            start_seconds=self._fixed_start + sum(scale[part] * loading[part] for part in _PARTS),
            step_seconds=times.step_seconds,
            sample_seconds=0.0 if num_workers else times.sample_seconds,
            epoch_seconds=times.epoch_seconds,
            checkpoint_seconds=times.checkpoint_seconds,
            checkpoint_interval=self.checkpoint_interval,
            validation_seconds=times.validation_seconds(scale["validate"]),
            validation_interval=self.validation_interval,
            validates_epochs=self.validates_epochs,
            end_seconds=end_seconds,
            memory_bytes=_peak_bytes() + (0 if is_mapped else cached - sum(case_bytes.values())),
            case_bytes=cached,
            disk_bytes=_disk_bytes(folder) + (cached if is_mapped else 0),
        )


def _epoch(costs: Costs) -> float:
    return costs.steps_per_epoch * costs.step_seconds + costs.epoch_seconds


def _spread(items: list[Any], number: int) -> list[Any]:
    """Return at most `number` items, evenly spread."""
    positions = np.unique(np.linspace(0, len(items) - 1, min(number, len(items))).round().astype(int))
    return [items[position] for position in positions]


def _cached_bytes(dataset: Any) -> int:
    """Return the size of the distinct prepared cases of a MONAI `CacheDataset`; 0 for other data sets."""
    distinct = {str(case): item for case, item in zip(dataset.data, getattr(dataset, "_cache", ()), strict=False)}
    return sum(_bytes_of(item) for item in distinct.values())


def _bytes_of(item: Any) -> int:
    if isinstance(item, torch.Tensor | np.ndarray):
        return item.nbytes
    parts: Iterable[Any] = (
        item.values() if isinstance(item, Mapping) else item if isinstance(item, list | tuple) else ()
    )
    return sum(_bytes_of(part) for part in parts)


def _disk_bytes(folder: Path) -> int:
    """Return the size of a run's weights and checkpoints: two are kept while a third is written."""
    files = checkpoint_files(folder / "checkpoints")
    return (3 * files[-1].stat().st_size if files else 0) + sum(f.stat().st_size for f in folder.glob("model.pt"))


def _peak_bytes() -> int:
    """Return the largest memory of this process with its largest worker process, summed over the process group."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    peak = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) * unit
    return int(idist.all_reduce(float(peak))) if idist.get_world_size() > 1 else peak


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(request_file: str) -> None:
    """Measure the training that a request describes, and write the costs where it says."""
    show_one_line_errors()
    request = read_json(request_file, OptionError)
    logging.disable(logging.WARNING)
    out_dir = Path(request["out_dir"])
    costs = measure(request["options"], out_dir, request["seconds"], request["launched"])
    if int(os.environ.get("RANK", 0)) == 0:
        with replacing(request["result"]) as temporary:
            temporary.write_text(json.dumps(costs.to_dict()), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
