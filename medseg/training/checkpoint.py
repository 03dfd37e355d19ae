"""Write checkpoints of a training and resume from them."""

from __future__ import annotations

import hashlib
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events

from medseg.errors import WeightsError, first_line
from medseg.plan import Plan
from medseg.training.distributed import is_main_process
from medseg.training.iteration import FiniteSteps
from medseg.training.sampling import ProcessRandomStates
from medseg.volumes.files import set_aside
from medseg.weights.state_dict import save_state

PREFIX = "training_checkpoint_"
OTHER_FOLDER = "or train into another output_dir"


class CheckpointHandler:
    """Write the whole state of a training after its epochs, and resume from it.

    A checkpoint holds the given objects, the trainer's epoch, the evaluator's best and last metrics, the random states
    of every process, the plan, and the fingerprint of the training (`training_identity`): a checkpoint of another
    training is refused. It is written after all other handlers of the epoch's end, validation included. On a CPU with
    a fixed number of threads, a training that was killed and resumed ends in the same weights, bit for bit, as an
    uninterrupted one. See `write_checkpoint` for what a crash leaves and `read_newest` for damaged files. Among several
    processes the first one writes and all of them read.

    Args:
        directory: folder for the checkpoints, created if missing. If it holds checkpoints and the training does not
            resume them, the folder is renamed and nothing is overwritten.
        objects: name → object with `state_dict`, e.g. network, optimizer, lr_scheduler, update; loaded in this order.
        plan: stored beside the weights; a checkpoint of another plan is refused.
        resume: start from the newest complete checkpoint in `directory`, if there is one. `max_epochs` may have grown.
            The strings `true` and `false` mean the same, because MONAI's command line passes JSON's words as text.
        every: epochs between checkpoints; the last epoch always has one.
        keep: number of checkpoints kept, at least 1.
        evaluator: validation engine whose metrics are kept; None for none.

    Raises:
        ValueError: `every`, `keep` or `resume` is not valid.
    """

    def __init__(
        self,
        directory: str | Path,
        objects: Mapping[str, Any],
        plan: Plan,
        resume: bool | str = False,
        every: int = 1,
        keep: int = 2,
        evaluator: Engine | None = None,
    ) -> None:
        if every < 1 or keep < 1:
            raise ValueError(f"every and keep must be at least 1, found every={every}, keep={keep}")
        self.directory = Path(directory)
        self.objects = dict(objects)
        self.plan = plan
        self.resume = _as_bool(resume)
        self.every = every
        self.keep = keep
        self.evaluator = evaluator

    def attach(self, engine: Engine) -> None:
        """Load the checkpoint to resume from, if any, and save after the epochs of `engine`.

        Raises:
            WeightsError: the checkpoint is of another training, or all checkpoints are damaged.
        """
        found = read_newest(self.directory) if self.resume else None
        if found is not None:
            self._load(engine, *found)
        epoch, iteration = engine.state.epoch, engine.state.iteration

        def start(engine: Engine) -> None:
            if engine.has_event_handler(self._save, Events.EPOCH_COMPLETED):
                return  # the same engine runs a second time, from where its first run ended
            # ignite restarts at 0 if no epoch is left; with the state restored it goes straight to its end
            engine.state.epoch, engine.state.iteration = epoch, iteration
            if found is None and is_main_process() and checkpoint_files(self.directory):
                set_aside([self.directory])
            # added only now, so that it runs after every other handler of the epoch's end
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)

        engine.add_event_handler(Events.STARTED, start)

    def _save(self, engine: Engine) -> None:
        epoch = engine.state.epoch
        if epoch % self.every and epoch != engine.state.max_epochs:
            return
        state = {name: item.state_dict() for name, item in self.objects.items()}
        state["trainer"] = {name: getattr(engine.state, name) for name in ("epoch", "iteration", "epoch_length")}
        state["finite_steps"] = FiniteSteps.of(engine).state_dict()
        state["evaluator"] = {} if self.evaluator is None else _metrics(self.evaluator)
        state["random"] = ProcessRandomStates().state_dict()
        state["plan"] = self.plan.to_dict()
        state["identity"] = training_identity(engine, self.objects)
        if is_main_process():
            write_checkpoint(self.directory, epoch, state, self.keep)
        idist.barrier()

    def _load(self, engine: Engine, path: Path, state: Mapping[str, Any]) -> None:
        self._check(engine, path, state)
        for name, item in self.objects.items():
            try:
                item.load_state_dict(state[name])
            except (RuntimeError, ValueError, KeyError) as error:
                reason = first_line(error).rstrip(": ")
                raise WeightsError(
                    f"{path}: its {name} does not fit this run's ({reason}); resume with the same configs, "
                    f"{OTHER_FOLDER}"
                ) from error
        engine.state.epoch, engine.state.iteration = state["trainer"]["epoch"], state["trainer"]["iteration"]
        if (wanted := engine.state.max_epochs or 0) < engine.state.epoch:
            engine.logger.warning(f"{path}: {engine.state.epoch} epochs are done already, max_epochs is {wanted}")
        engine.state.max_epochs = max(wanted, engine.state.epoch)
        FiniteSteps.of(engine).load_state_dict(state["finite_steps"])
        if self.evaluator is not None:
            for name, value in state["evaluator"].items():
                setattr(self.evaluator.state, name, value)
        ProcessRandomStates().load_state_dict(state["random"])
        engine.logger.info(f"resumed from {path} at epoch {engine.state.epoch}")

    def _check(self, engine: Engine, path: Path, state: Mapping[str, Any]) -> None:
        wanted = (*self.objects, "trainer", "finite_steps", "evaluator", "random", "plan", "identity")
        absent = [name for name in wanted if name not in state]
        if absent:
            raise WeightsError(
                f"{path}: has no {', '.join(absent)}, which this training needs to go on; resume with the same "
                f"configs, {OTHER_FOLDER}"
            )
        now, then = self.plan.to_dict(), state["plan"]
        changed = [key for key in {**now, **then} if now.get(key) != then.get(key)]
        if changed:
            raise WeightsError(
                f"{self.plan.source}: {changed[0]} differs from the plan of the checkpoint {path}; restore the plan, "
                f"{OTHER_FOLDER}"
            )
        if reason := difference(state["identity"], training_identity(engine, self.objects)):
            raise WeightsError(f"{path}: {reason}")
        length = state["trainer"]["epoch_length"]
        if engine.state.epoch_length not in (None, length):
            raise WeightsError(
                f"{path}: was trained with {length} steps per epoch, now there are {engine.state.epoch_length}; "
                f"restore the batch size, the data and the number of processes, {OTHER_FOLDER}"
            )


def checkpoint_files(directory: str | Path) -> list[Path]:
    """List the checkpoints of a folder, oldest epoch first; empty if there is no such folder."""
    found = (file for file in Path(directory).glob(f"{PREFIX}*.pt") if file.stem.removeprefix(PREFIX).isdecimal())
    return sorted(found, key=lambda file: int(file.stem.removeprefix(PREFIX)))


def write_checkpoint(directory: Path, epoch: int, state: Mapping[str, Any], keep: int) -> Path:
    """Write the state of an epoch, and only then remove all but the `keep` newest checkpoints.

    The file is written atomically, so at any moment of a crash `keep` complete checkpoints remain (fewer in the first
    epochs).
    """
    path = directory / f"{PREFIX}{epoch}.pt"
    save_state(dict(state), path)
    for old in checkpoint_files(directory)[:-keep]:
        old.unlink()
    for unfinished in directory.glob(f".{PREFIX}*.partial"):  # a training was killed while it wrote
        unfinished.unlink(missing_ok=True)
    return path


def read_newest(directory: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """Read the newest complete checkpoint; a warning names each damaged one on the way.

    Returns:
        The file and its content; None if there is no checkpoint.

    Raises:
        WeightsError: every checkpoint is damaged.
    """
    files = checkpoint_files(directory)
    for file in reversed(files):
        try:
            return file, _read(file)
        except Exception as error:  # torch.load raises half a dozen kinds for a torn file
            warnings.warn(f"{file}: damaged checkpoint, trying the one before ({first_line(error)})", stacklevel=2)
    if files:
        raise WeightsError(f"{directory}: all {len(files)} checkpoints are damaged; start again without --resume True")
    return None


def _read(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()  # compares the checksums of all records, which torch.load does not promise to do
    if damaged is not None:
        raise ValueError(f"checksum of {damaged} is wrong")
    return torch.load(path, map_location="cpu", weights_only=True)


def training_identity(engine: Engine, objects: Mapping[str, Any]) -> dict[str, Any]:
    """Fingerprint a training by plain data that must not change when it is resumed.

    Args:
        engine: a MONAI trainer. Its seed and cases are taken if its loader has a `SeededSampler` and a data set of
            dictionaries with a `case`.
        objects: the objects in the checkpoint.

    Returns:
        `kinds`: class name of each object; `seed`: None without one; `cases`: their number and a digest of their names,
        None without names.
    """
    loader = getattr(engine, "data_loader", None)
    return {
        "kinds": {name: type(item).__name__ for name, item in objects.items()},
        "seed": getattr(getattr(loader, "sampler", None), "seed", None),
        "cases": _cases(getattr(loader, "dataset", None)),
    }


def difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Say which part of a training's fingerprint changed and how to go on; None if nothing did."""
    for name, kind in now["kinds"].items():
        before = then["kinds"].get(name, kind)
        if before != kind:
            return f"its {name} is a {before}, this run's a {kind}; resume with the same configs, {OTHER_FOLDER}"
    seed = then["seed"]
    if None not in (seed, now["seed"]) and seed != now["seed"]:
        return f"was trained with seed {seed}, now it is {now['seed']}; give --seed {seed}, {OTHER_FOLDER}"
    cases = then["cases"]
    if None not in (cases, now["cases"]) and cases != now["cases"]:
        return (
            f"was trained on {cases['number']} cases, and this run's {now['cases']['number']} cases differ; give the "
            f"fold and the data of the first run, {OTHER_FOLDER}"
        )
    return None


def _cases(dataset: Any) -> dict[str, Any] | None:
    data = getattr(getattr(dataset, "dataset", dataset), "data", None)
    if not isinstance(data, list) or not all(isinstance(item, Mapping) and "case" in item for item in data):
        return None
    names = sorted(str(item["case"]) for item in data)
    return {"number": len(names), "sha256": hashlib.sha256("\n".join(names).encode()).hexdigest()}


def _as_bool(given: bool | str) -> bool:
    if isinstance(given, str):
        if given.lower() not in ("true", "false"):
            raise ValueError(f"resume must be True or False, found {given!r}")
        return given.lower() == "true"
    return bool(given)


def _metrics(evaluator: Engine) -> dict[str, Any]:
    """Return the best and last metrics of a MONAI evaluator as plain numbers."""
    state = evaluator.state
    kept = {name: getattr(state, name) for name in ("best_metric", "best_metric_epoch") if hasattr(state, name)}
    plain = {name: _number(value) for name, value in kept.items()}
    metrics = {name: _number(value) for name, value in state.metrics.items()}
    return {**plain, "metrics": {name: value for name, value in metrics.items() if value is not None}}


def _number(value: Any) -> float | int | None:
    if (isinstance(value, torch.Tensor) and value.numel() == 1) or hasattr(value, "item"):
        value = value.item()
    return value if isinstance(value, int | float) else None
